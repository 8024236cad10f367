#include "supervisor/qemu/disks.hpp"

#include <dirent.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

namespace liveupdate::supervisor::qemu {
namespace {

using FileNumber = std::pair<dev_t, ino_t>;

Result<std::set<FileNumber>> open_files(pid_t pid) {
    const std::string path = "/proc/" + std::to_string(pid) + "/fd";
    DIR* dir = ::opendir(path.c_str());
    if (dir == nullptr) return Error::from_errno("list the files that QEMU has open, in " + path);
    std::set<FileNumber> found;
    while (const dirent* entry = ::readdir(dir)) {
        struct stat status {};
        if (::fstatat(::dirfd(dir), entry->d_name, &status, 0) == 0)
            found.insert({status.st_dev, status.st_ino});
    }
    ::closedir(dir);
    return found;
}

bool is_file_on_the_host(const std::string& driver) {
    return driver == "file" || driver == "host_device" || driver == "host_cdrom";
}

} // namespace

Result<void> check_disks(QemuProcess& source, Deadline deadline) {
    TRY_ASSIGN(
        const nlohmann::json nodes, source.execute("query-named-block-nodes", {{"flat", true}}, deadline));
    if (!nodes.is_array()) return Error(ErrorCode::kProtocol, "QEMU lists no block nodes");
    TRY_ASSIGN(const std::set<FileNumber> open, open_files(source.pid()));
    for (const nlohmann::json& node : nodes) {
        const std::string path = word_in(node, "file");
        if (!is_file_on_the_host(word_in(node, "drv")) || path.empty()) continue;
        struct stat status {};
        if (::stat(path.c_str(), &status) < 0)
            return Error(ErrorCode::kRefused,
                "the guest's disk " + path + " is not where it was: " + std::strerror(errno));
        if (!open.contains({status.st_dev, status.st_ino}))
            return Error(ErrorCode::kRefused, path +
                                                  " is not the file any more that the guest has as its disk; "
                                                  "put that one back to its place");
    }
    return {};
}

} // namespace liveupdate::supervisor::qemu
