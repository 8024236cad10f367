#include "supervisor/qemu/adopted.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <sstream>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

constexpr size_t kLongestCommandLine = size_t{1} << 20;
// Fields of proc_pid_stat(5).
constexpr int kState = 3;
constexpr int kParent = 4;
constexpr int kStartTime = 22;

std::string file_in(const std::string& folder) {
    return folder + "/adopted.json";
}

Result<std::string> field_of(pid_t pid, int wanted) {
    const auto text = fd::read_file("/proc/" + std::to_string(pid) + "/stat", 4096);
    const size_t name_end = text ? text->rfind(')') : std::string::npos;
    if (name_end == std::string::npos)
        return Error(ErrorCode::kNotFound, "there is no process " + std::to_string(pid));
    std::istringstream fields(text->substr(name_end + 1));
    std::string field;
    for (int number = kState; number <= wanted; ++number) {
        fields >> field;
        if (number == kState && (field == "Z" || field == "X"))
            return Error(ErrorCode::kNotFound, "process " + std::to_string(pid) + " has ended");
    }
    return field;
}

} // namespace

Result<uint64_t> start_ticks_of(pid_t pid) {
    TRY_ASSIGN(const std::string ticks, field_of(pid, kStartTime));
    return std::strtoull(ticks.c_str(), nullptr, 10);
}

Result<pid_t> parent_of(pid_t pid) {
    TRY_ASSIGN(const std::string parent, field_of(pid, kParent));
    return static_cast<pid_t>(std::strtol(parent.c_str(), nullptr, 10));
}

std::string adopted_monitor(const std::string& folder) {
    return folder + "/qmp-" + std::to_string(kAdoptedParticipant) + ".sock";
}

Result<std::vector<std::string>> arguments_of(pid_t pid) {
    TRY_ASSIGN(const std::string line,
        fd::read_file("/proc/" + std::to_string(pid) + "/cmdline", kLongestCommandLine));
    std::vector<std::string> all;
    for (size_t begin = 0; begin < line.size();) {
        const size_t end = std::min(line.find('\0', begin), line.size());
        all.push_back(line.substr(begin, end - begin));
        begin = end + 1;
    }
    if (!all.empty()) all.erase(all.begin());
    return all;
}

Result<void> keep_adopted(const std::string& folder, const AdoptedQemu& adopted, const std::string& monitor) {
    if (::mkdir(folder.c_str(), 0700) < 0 && errno != EEXIST) return Error::from_errno("make " + folder);
    const nlohmann::json json = {
        {"pid", adopted.pid}, {"start_ticks", adopted.start_ticks}, {"arguments", adopted.arguments}};
    TRY(fd::write_file_atomically(file_in(folder), json.dump() + "\n", 0600));
    const std::string link = adopted_monitor(folder);
    if (::unlink(link.c_str()) < 0 && errno != ENOENT) return Error::from_errno("remove " + link);
    if (::symlink(monitor.c_str(), link.c_str()) < 0) return Error::from_errno("link " + link);
    return {};
}

void drop_adopted(const std::string& folder) {
    struct stat status {};
    const std::string link = adopted_monitor(folder);
    if (::lstat(link.c_str(), &status) == 0 && S_ISLNK(status.st_mode)) ::unlink(link.c_str());
    ::unlink(file_in(folder).c_str());
}

Result<std::optional<AdoptedQemu>> find_adopted(const std::string& folder) {
    if (::access(file_in(folder).c_str(), F_OK) < 0) return std::optional<AdoptedQemu>();
    TRY_ASSIGN(const std::string text, fd::read_file(file_in(folder), kLongestCommandLine));
    AdoptedQemu adopted;
    try {
        const auto json = nlohmann::json::parse(text);
        adopted.pid = json.at("pid").get<pid_t>();
        adopted.start_ticks = json.at("start_ticks").get<uint64_t>();
        adopted.arguments = json.at("arguments").get<std::vector<std::string>>();
    } catch (const nlohmann::json::exception&) {
        return Error(ErrorCode::kInvalid,
            file_in(folder) + " is damaged; end the QEMU that was adopted, and remove it");
    }
    const auto ticks = start_ticks_of(adopted.pid);
    if (!ticks || *ticks != adopted.start_ticks) return std::optional<AdoptedQemu>();
    return std::optional<AdoptedQemu>(std::move(adopted));
}

} // namespace liveupdate::supervisor::qemu
