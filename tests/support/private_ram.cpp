#include "tests/support/private_ram.hpp"

#include <sys/uio.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

namespace liveupdate::tests {
namespace {

using ::tests::guests::kReportGpa;
using ::tests::guests::kReportMagic;
using ::tests::guests::Report;

constexpr uint64_t kStep = 4096;
// A mapping of more than this many times the RAM's size is none of QEMU's (a sanitizer's shadow has
// terabytes).
constexpr uint64_t kMostMerged = 16;

bool read_memory(pid_t pid, uint64_t at, void* into, size_t size) {
    const iovec here{into, size}, there{reinterpret_cast<void*>(at), size};
    return ::process_vm_readv(pid, &here, 1, &there, 1, 0) == static_cast<ssize_t>(size);
}

} // namespace

std::vector<pid_t> children_of(pid_t parent) {
    std::vector<pid_t> found;
    std::error_code ignored;
    for (const auto& task :
        std::filesystem::directory_iterator("/proc/" + std::to_string(parent) + "/task", ignored)) {
        std::ifstream children(task.path() / "children");
        for (pid_t pid = 0; children >> pid;)
            found.push_back(pid);
    }
    return found;
}

const Report& PrivateRam::report(pid_t supervisor, uint64_t size) {
    if (vmm_ != 0 && read_from(vmm_)) return *copy_;
    vmm_ = 0;
    *copy_ = {};
    std::vector<pid_t> candidates = children_of(supervisor);
    for (const pid_t orphan : children_of(::getpid())) // of a supervisor that has died; see LiveVm
        candidates.push_back(orphan);
    for (const pid_t vmm : candidates)
        if (find(vmm, size) && read_from(vmm)) {
            vmm_ = vmm;
            break;
        }
    return *copy_;
}

bool PrivateRam::read_from(pid_t vmm) {
    return read_memory(vmm, ram_ + kReportGpa, copy_.get(), sizeof(Report)) &&
           copy_->header.magic == kReportMagic;
}

// Neighbours may have become one mapping: RAM is at a page somewhere in it.
bool PrivateRam::find(pid_t vmm, uint64_t size) {
    std::ifstream maps("/proc/" + std::to_string(vmm) + "/maps");
    for (std::string line; std::getline(maps, line);) {
        uint64_t begin = 0, end = 0, inode = 0;
        char mode[8] = "";
        if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %7s %*s %*s %" SCNu64, &begin, &end, mode,
                &inode) != 4)
            continue;
        if (mode[1] != 'w' || inode != 0 || end - begin < size) continue;
        if (end - begin > kMostMerged * size) continue;
        for (ram_ = begin; ram_ + size <= end; ram_ += kStep) {
            uint64_t magic = 0;
            if (read_memory(vmm, ram_ + kReportGpa, &magic, sizeof(magic)) && magic == kReportMagic)
                return true;
        }
    }
    return false;
}

} // namespace liveupdate::tests
