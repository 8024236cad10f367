#include "tests/linux/guest/file_check.hpp"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tests/linux/pattern.hpp"

namespace linux_guest {
namespace {

constexpr const char* kMountPoint = "/mnt";
constexpr std::uint64_t kLargest = 128 << 10;
using ULL = unsigned long long;

class OpenFile {
public:
    OpenFile(const std::string& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
    OpenFile(const OpenFile&) = delete;
    OpenFile& operator=(const OpenFile&) = delete;
    ~OpenFile() {
        if (fd_ >= 0) ::close(fd_);
    }
    int get() const { return fd_; }

private:
    int fd_;
};

} // namespace

void FileCheck::fail(const std::string& what, std::size_t slot) {
    error(text("files on %s: %s %zu: %s", device_.c_str(), what.c_str(), slot, std::strerror(errno)));
}

bool FileCheck::mount() {
    ::mkdir(kMountPoint, 0755);
    if (::mount(("/dev/" + device_).c_str(), kMountPoint, "ext4", 0, "errors=continue") == 0) return true;
    fail("mount", 0);
    return false;
}

void FileCheck::unmount() {
    if (::umount(kMountPoint) != 0) fail("umount", 0);
}

std::string FileCheck::path(std::size_t slot) const {
    return std::string(kMountPoint) + "/file" + std::to_string(slot);
}

void FileCheck::write(std::size_t slot) {
    const std::uint64_t generation = ++generation_;
    buffer_.resize(1 + mix(generation) % kLargest);
    fill_stream(buffer_, generation, 0);
    const std::string temporary = path(slot) + ".new";
    {
        const OpenFile file(temporary, O_WRONLY | O_CREAT | O_TRUNC);
        if (::write(file.get(), buffer_.data(), buffer_.size()) != static_cast<ssize_t>(buffer_.size()))
            return fail("write of file", slot);
        if (::fsync(file.get()) != 0) return fail("fsync of file", slot);
    }
    if (::rename(temporary.c_str(), path(slot).c_str()) != 0) return fail("rename of file", slot);
    files_[slot] = {generation, buffer_.size()};
    ++written_;
}

void FileCheck::verify(std::size_t slot) {
    const OpenFile file(path(slot), O_RDONLY);
    // Clean pages are dropped, so the disk is read and not the cache.
    ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
    buffer_.resize(kLargest + 1);
    const ssize_t n = ::read(file.get(), buffer_.data(), buffer_.size());
    if (n < 0) return fail("read of file", slot);
    const auto bytes = static_cast<std::size_t>(n);
    const std::size_t wrong = stream_mismatch({buffer_.data(), bytes}, files_[slot].generation, 0);
    if (bytes != files_[slot].bytes || wrong != bytes)
        error(text("files on %s: file %zu generation %llu has %zu bytes of %llu, wrong from byte %zu on",
            device_.c_str(), slot, ULL{files_[slot].generation}, bytes, ULL{files_[slot].bytes}, wrong));
    ++verified_;
}

void FileCheck::remove(std::size_t slot) {
    if (::unlink(path(slot).c_str()) != 0) fail("unlink of file", slot);
    files_[slot] = {};
    ++removed_;
}

void FileCheck::run(const std::atomic<bool>& stop) {
    if (!mount()) return;
    for (std::uint64_t n = 0; !stop; ++n) {
        const std::size_t slot = mix(n) % files_.size();
        const std::uint64_t dice = mix(n + 0x1000000) % 8;
        if (files_[slot].generation == 0 || dice < 3)
            write(slot);
        else if (dice < 7)
            verify(slot);
        else
            remove(slot);
        if (pause_us_ > 0) sleep_us(pause_us_);
    }
    unmount();
    if (!mount()) return;
    for (std::size_t slot = 0; slot < files_.size(); ++slot)
        if (files_[slot].generation != 0) verify(slot);
    unmount();
}

std::string FileCheck::progress() const {
    return text("files %s written=%llu verified=%llu removed=%llu", device_.c_str(), ULL{written_.load()},
        ULL{verified_.load()}, ULL{removed_.load()});
}

} // namespace linux_guest
