#include "vmm/boot/image_file.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <limits>

namespace liveupdate::vmm {

Result<uint64_t> image_size(int fd) {
    struct stat status {};
    if (::fstat(fd, &status) != 0) return Error::from_errno("look at the file");
    if (!S_ISREG(status.st_mode)) return Error(ErrorCode::kInvalid, "it is not a regular file");
    return static_cast<uint64_t>(status.st_size);
}

Result<void> read_image(int fd, uint64_t offset, std::span<uint8_t> into) {
    constexpr auto kLargestOffset = static_cast<uint64_t>(std::numeric_limits<off_t>::max());
    if (offset > kLargestOffset || into.size() > kLargestOffset - offset)
        return Error(ErrorCode::kInvalid, "an offset in the file is beyond what any file can hold");
    while (!into.empty()) {
        const ssize_t got = ::pread(fd, into.data(), into.size(), static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return Error::from_errno("read the file at offset " + std::to_string(offset));
        if (got == 0)
            return Error(ErrorCode::kInvalid, "the file ends at offset " + std::to_string(offset) + ", " +
                                                  std::to_string(into.size()) + " bytes too early");
        into = into.subspan(static_cast<size_t>(got));
        offset += static_cast<uint64_t>(got);
    }
    return {};
}

} // namespace liveupdate::vmm
