// Files on a file system that are written, synced, renamed, read back past the page cache, and removed.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/linux/guest/report.hpp"

namespace linux_guest {

class FileCheck : public Check {
public:
    // `device`: "vdc", with an empty ext4.
    FileCheck(std::string device, std::uint64_t pause_us) : device_(std::move(device)), pause_us_(pause_us) {}
    void run(const std::atomic<bool>& stop) override;
    std::string progress() const override;

private:
    struct File {
        std::uint64_t generation = 0; // 0: there is none
        std::uint64_t bytes = 0;
    };

    bool mount();
    void unmount();
    std::string path(std::size_t slot) const;
    void write(std::size_t slot);
    void verify(std::size_t slot);
    void remove(std::size_t slot);
    void fail(const std::string& what, std::size_t slot);

    const std::string device_;
    const std::uint64_t pause_us_;
    std::array<File, 24> files_;
    std::vector<std::uint8_t> buffer_;
    std::uint64_t generation_ = 0;
    std::atomic<std::uint64_t> written_ = 0, verified_ = 0, removed_ = 0;
};

} // namespace linux_guest
