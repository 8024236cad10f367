#include "supervisor/qemu/open_files.hpp"

#include <dirent.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

namespace liveupdate::supervisor::qemu {
namespace {

constexpr std::string_view kSelf = "/proc/self/";

bool is_file_on_the_host(const std::string& driver) {
    return driver == "file" || driver == "host_device" || driver == "host_cdrom";
}

} // namespace

Result<bool> has_open(const QemuProcess& qemu, const std::string& path) {
    const std::string process = "/proc/" + std::to_string(qemu.pid()) + "/";
    const std::string real = path.starts_with(kSelf) ? process + path.substr(kSelf.size()) : path;
    struct stat wanted {};
    if (::stat(real.c_str(), &wanted) < 0)
        return Error(ErrorCode::kRefused, path + " is not where it was: " + std::strerror(errno));
    DIR* dir = ::opendir((process + "fd").c_str());
    if (dir == nullptr) return Error::from_errno("list the files that QEMU has open, in " + process + "fd");
    bool found = false;
    while (const dirent* entry = ::readdir(dir)) {
        struct stat status {};
        found = found || (::fstatat(::dirfd(dir), entry->d_name, &status, 0) == 0 &&
                             status.st_dev == wanted.st_dev && status.st_ino == wanted.st_ino);
    }
    ::closedir(dir);
    return found;
}

Result<void> check_disks(QemuProcess& source, Deadline deadline) {
    TRY_ASSIGN(
        const nlohmann::json nodes, source.execute("query-named-block-nodes", {{"flat", true}}, deadline));
    if (!nodes.is_array()) return Error(ErrorCode::kProtocol, "QEMU lists no block nodes");
    for (const nlohmann::json& node : nodes) {
        const std::string path = word_in(node, "file");
        if (!is_file_on_the_host(word_in(node, "drv")) || path.empty()) continue;
        TRY_ASSIGN(const bool same, has_open(source, path).context("the guest's disk"));
        if (!same)
            return Error(ErrorCode::kRefused, path +
                                                  " is not the file any more that the guest has as its disk; "
                                                  "put that one back to its place");
    }
    return {};
}

} // namespace liveupdate::supervisor::qemu
