// Huge pages and a hugetlbfs to have them on, for as long as a test needs them.
#pragma once

#include <sys/mount.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {

// vm.nr_hugepages and mounts are as they were at the end.
class HugePages {
public:
    explicit HugePages(unsigned more) {
        std::ifstream(kFile) >> before_;
        std::ofstream(kFile) << before_ + more;
        unsigned now = 0;
        std::ifstream(kFile) >> now;
        std::filesystem::create_directory(path());
        mounted_ = now >= before_ + more && ::mount("none", path().c_str(), "hugetlbfs", 0, nullptr) == 0;
    }
    HugePages(const HugePages&) = delete;
    HugePages& operator=(const HugePages&) = delete;
    ~HugePages() {
        if (mounted_) ::umount2(path().c_str(), MNT_DETACH);
        std::ofstream(kFile) << before_;
    }

    bool mounted() const { return mounted_; } // else none can be had here
    std::string path() const { return folder_.at("huge"); }

private:
    static constexpr const char* kFile = "/proc/sys/vm/nr_hugepages";
    TemporaryFolder folder_;
    unsigned before_ = 0;
    bool mounted_ = false;
};

} // namespace liveupdate::tests
