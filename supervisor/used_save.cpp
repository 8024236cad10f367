#include "supervisor/used_save.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor {

std::string used_save(const std::string& path) {
    return path + ".used";
}

Result<void> use_up_save(const std::string& path) {
    TRY_ASSIGN(const UniqueFd folder, fd::open(path.substr(0, path.rfind('/')), O_RDONLY | O_DIRECTORY));
    if (::rename(path.c_str(), used_save(path).c_str()) < 0)
        return Error::from_errno("rename " + path + " to " + used_save(path));
    if (::fsync(folder.get()) == 0) return {};
    const Error error = Error::from_errno("sync the folder of " + path);
    put_save_back(path);
    return error;
}

void put_save_back(const std::string& path) {
    static_cast<void>(::rename(used_save(path).c_str(), path.c_str()));
}

void forget_used_save(const std::string& path) {
    ::unlink(used_save(path).c_str());
}

} // namespace liveupdate::supervisor
