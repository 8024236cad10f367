#include "supervisor/qemu/qemu_folder.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

constexpr auto kLook = std::chrono::milliseconds(1);

} // namespace

Result<void> QemuFolder::make() const {
    if (::mkdir(path_.c_str(), 0700) < 0 && errno != EEXIST) return Error::from_errno("make " + path_);
    struct stat status {};
    if (::lstat(path_.c_str(), &status) < 0) return Error::from_errno("stat " + path_);
    if (!S_ISDIR(status.st_mode) || status.st_uid != ::geteuid())
        return Error(ErrorCode::kRefused, path_ + " is not a folder of our own; remove it");
    if (::chmod(path_.c_str(), 0700) < 0) return Error::from_errno("chmod " + path_);
    return {};
}

nlohmann::json QemuFolder::migration_channels() const {
    const auto channel = [](const char* type, const std::string& path) -> nlohmann::json {
        return {
            {"channel-type", type}, {"addr", {{"transport", "socket"}, {"type", "unix"}, {"path", path}}}};
    };
    return nlohmann::json::array({channel("main", migration_socket()), channel("cpr", cpr_socket())});
}

Result<UniqueFd> QemuFolder::life() const {
    TRY_ASSIGN(UniqueFd file, fd::open(life_file(), O_RDWR | O_CREAT, 0600));
    if (::flock(file.get(), LOCK_SH | LOCK_NB) < 0) return Error::from_errno("lock " + life_file());
    return file;
}

Result<bool> QemuFolder::nobody_lives(Deadline deadline) const {
    TRY_ASSIGN(const UniqueFd file, fd::open(life_file(), O_RDWR | O_CREAT, 0600));
    while (::flock(file.get(), LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR) return Error::from_errno("lock " + life_file());
        if (deadline.passed()) return false;
        ::usleep(std::chrono::microseconds(kLook).count());
    }
    return true;
}

} // namespace liveupdate::supervisor::qemu
