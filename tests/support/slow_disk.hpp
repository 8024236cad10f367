// A disk that takes 200 ms for each read and each write: nbdkit's delay filter, seen as a file through
// nbdfuse.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

namespace liveupdate::tests {

class SlowDisk {
public:
    // Why none can be had here; empty when one can.
    static std::string why_none();

    // `file`: an empty file to mount over; `bytes`: the disk's size, all zero; `socket`: where the two
    // programs meet. The servers end with this object.
    SlowDisk(const std::string& file, uint64_t bytes, const std::string& socket);
    ~SlowDisk();
    SlowDisk(const SlowDisk&) = delete;
    SlowDisk& operator=(const SlowDisk&) = delete;

    bool up() const { return up_; }
    const std::string& path() const { return path_; }

private:
    std::string path_;
    pid_t server_ = -1;
    pid_t mount_ = -1;
    bool up_ = false;
};

} // namespace liveupdate::tests
