#include "tests/support/origin_ram.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "handoff/base/fd.hpp"

namespace liveupdate::tests {
namespace {

constexpr const char* kRam = "/memfd:ram0";

} // namespace

Result<UniqueFd> ram_file_of(pid_t pid) {
    const std::string directory = "/proc/" + std::to_string(pid) + "/fd";
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(directory, ignored))
        if (std::filesystem::read_symlink(entry.path(), ignored).string().starts_with(kRam))
            return fd::open(entry.path(), O_RDONLY);
    return Error(ErrorCode::kNotFound, "process " + std::to_string(pid) + " has no RAM open");
}

bool has_page(int ram, uint64_t offset) {
    return ::lseek(ram, static_cast<off_t>(offset), SEEK_DATA) == static_cast<off_t>(offset);
}

uint64_t bytes_in(int ram) {
    struct stat status {};
    return ::fstat(ram, &status) < 0 ? 0 : static_cast<uint64_t>(status.st_blocks) * 512;
}

std::string peek(int ram, uint64_t offset, size_t size) {
    std::string bytes(size, '\0');
    const ssize_t got = ::pread(ram, bytes.data(), size, static_cast<off_t>(offset));
    bytes.resize(got < 0 ? 0 : static_cast<size_t>(got));
    return bytes;
}

Result<uint64_t> address_in(pid_t vmm, uint64_t offset, uint64_t size) {
    std::ifstream maps("/proc/" + std::to_string(vmm) + "/maps");
    for (std::string line; std::getline(maps, line);) {
        uint64_t begin = 0, end = 0, at = 0;
        if (line.find(kRam) == std::string::npos ||
            std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %*s %" SCNx64, &begin, &end, &at) != 3)
            continue;
        if (offset >= at && offset + size <= at + (end - begin)) return begin + (offset - at);
    }
    return Error(ErrorCode::kNotFound, "the VMM " + std::to_string(vmm) + " has not mapped such RAM");
}

Result<std::string> touch(pid_t vmm, uint64_t offset, uint64_t size) {
    TRY_ASSIGN(const uint64_t address, address_in(vmm, offset, size));
    std::string bytes(size, '\0');
    const iovec here{bytes.data(), size}, there{reinterpret_cast<void*>(address), size};
    if (::process_vm_readv(vmm, &here, 1, &there, 1, 0) != static_cast<ssize_t>(size))
        return Error::from_errno("read the guest's RAM out of its VMM");
    return bytes;
}

} // namespace liveupdate::tests
