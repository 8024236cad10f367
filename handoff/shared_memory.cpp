#include "handoff/shared_memory.hpp"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/interprocess/exceptions.hpp>
#include <boost/interprocess/mapped_region.hpp>

#include "handoff/base/fd.hpp"

namespace liveupdate::handoff {
namespace {

namespace ipc = boost::interprocess;

// What mapped_region wants of something that can be mapped.
struct BorrowedFile {
    int fd;
    ipc::mapping_handle_t get_mapping_handle() const {
        ipc::mapping_handle_t handle = {};
        handle.handle = fd;
        handle.is_xsi = false;
        return handle;
    }
};

ipc::mode_t boost_mode(MapMode mode) {
    switch (mode) {
    case MapMode::kShared:
        return ipc::read_write;
    case MapMode::kPrivate:
        return ipc::copy_on_write;
    case MapMode::kReadOnly:
        return ipc::read_only;
    }
    return ipc::read_only;
}

constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW;

} // namespace

SharedMapping::SharedMapping() = default;
SharedMapping::SharedMapping(SharedMapping&&) noexcept = default;
SharedMapping& SharedMapping::operator=(SharedMapping&&) noexcept = default;
SharedMapping::~SharedMapping() = default;

Result<SharedMapping> SharedMapping::map(int fd, uint64_t offset, uint64_t size, MapMode mode) {
    try {
        SharedMapping mapping;
        mapping.region_ = std::make_unique<ipc::mapped_region>(BorrowedFile{fd}, boost_mode(mode),
            static_cast<ipc::offset_t>(offset), static_cast<std::size_t>(size), nullptr, MAP_NORESERVE);
        return mapping;
    } catch (const ipc::interprocess_exception& e) {
        return Error(ErrorCode::kSystem, "map " + std::to_string(size) + " bytes: " + e.what(),
            static_cast<int>(e.get_native_error()));
    }
}

std::byte* SharedMapping::data() const {
    return region_ ? static_cast<std::byte*>(region_->get_address()) : nullptr;
}
uint64_t SharedMapping::size() const {
    return region_ ? region_->get_size() : 0;
}

Result<UniqueFd> create_sealed_memfd(const std::string& name, uint64_t size, unsigned memfd_flags) {
    TRY_ASSIGN(UniqueFd file, fd::memfd_create(name, memfd_flags | MFD_ALLOW_SEALING));
    if (::ftruncate(file.get(), static_cast<off_t>(size)) < 0)
        return Error::from_errno("size memfd " + name + " to " + std::to_string(size) + " bytes");
    if (::fcntl(file.get(), F_ADD_SEALS, kSizeSeals | F_SEAL_SEAL) < 0)
        return Error::from_errno("seal memfd " + name);
    return file;
}

Result<uint64_t> sealed_size(int fd, const std::string& what) {
    const int seals = ::fcntl(fd, F_GET_SEALS);
    if (seals < 0) return Error(ErrorCode::kRefused, what + " is not a memfd");
    if ((seals & kSizeSeals) != kSizeSeals)
        return Error(ErrorCode::kRefused, what + " is a memfd without the seals against shrinking and "
                                                 "growing; its owner could pull memory away");
    struct stat info {};
    if (::fstat(fd, &info) < 0) return Error::from_errno("fstat of " + what);
    return static_cast<uint64_t>(info.st_size);
}

} // namespace liveupdate::handoff
