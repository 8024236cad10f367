// Mapping of shared memory (RAM blocks, the baton, the transfer area) by Boost.Interprocess.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"

namespace boost::interprocess {
class mapped_region;
}

namespace liveupdate::handoff {

enum class MapMode { kShared, kPrivate, kReadOnly }; // kPrivate: copy on write, nothing reaches the file

// A mapped part of a file, unmapped with this object.
class SharedMapping {
public:
    SharedMapping();
    SharedMapping(SharedMapping&&) noexcept;
    SharedMapping& operator=(SharedMapping&&) noexcept;
    ~SharedMapping();

    // offset and size in bytes; offset a multiple of the page size. The mapping is page-aligned.
    static Result<SharedMapping> map(int fd, uint64_t offset, uint64_t size, MapMode mode);

    std::byte* data() const;
    uint64_t size() const;
    std::span<std::byte> bytes() const { return {data(), size()}; }

private:
    std::unique_ptr<boost::interprocess::mapped_region> region_;
};

// A memfd of `size` bytes, sealed against growing, shrinking and further seals.
Result<UniqueFd> create_sealed_memfd(const std::string& name, uint64_t size, unsigned memfd_flags = 0);

// The size that fstat says of a memfd which carries F_SEAL_SHRINK and F_SEAL_GROW; anything else is refused
// in words, `what` naming the fd.
Result<uint64_t> sealed_size(int fd, const std::string& what);

} // namespace liveupdate::handoff
