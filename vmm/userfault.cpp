#include "vmm/userfault.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace liveupdate::vmm {
namespace {

constexpr uint64_t kPage = 4096;

} // namespace

// Also for faults in the kernel, where KVM and direct I/O reach for RAM; hence not USER_MODE_ONLY.
Result<Userfault> Userfault::open(const std::string& otherwise) {
    Userfault faults;
    faults.file_ = UniqueFd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
    if (!faults.file_ && (errno == EPERM || errno == ENOSYS))
        return Error(ErrorCode::kUnsupported,
            "this user may not use userfaultfd, which RAM that comes when it is touched needs; set the "
            "sysctl vm.unprivileged_userfaultfd to 1, or " +
                otherwise);
    if (!faults.file_) return Error::from_errno("userfaultfd");
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = UFFD_FEATURE_MISSING_SHMEM;
    if (::ioctl(faults.file_.get(), UFFDIO_API, &api) < 0)
        return Error(
            ErrorCode::kUnsupported, "this kernel has no userfaultfd for shared memory; " + otherwise);
    return faults;
}

Result<void> Userfault::watch(std::span<std::byte> mapped) const {
    uffdio_register area{};
    area.range = {reinterpret_cast<uint64_t>(mapped.data()), mapped.size()};
    area.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (::ioctl(fd(), UFFDIO_REGISTER, &area) < 0) return Error::from_errno("watch for what touches RAM");
    return {};
}

void Userfault::unwatch(std::span<std::byte> mapped) const {
    uffdio_range range{reinterpret_cast<uint64_t>(mapped.data()), mapped.size()};
    ::ioctl(fd(), UFFDIO_UNREGISTER, &range);
}

Result<std::optional<uint64_t>> Userfault::next() const {
    for (;;) {
        uffd_msg message{};
        const ssize_t got = ::read(fd(), &message, sizeof(message));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) return std::optional<uint64_t>();
        if (got != sizeof(message)) return Error::from_errno("read what touches RAM");
        if (message.event == UFFD_EVENT_PAGEFAULT)
            return std::optional<uint64_t>(message.arg.pagefault.address / kPage * kPage);
    }
}

Result<void> Userfault::give(uint64_t address, std::span<const std::byte> page) const {
    for (;;) {
        uffdio_copy copy{};
        copy.dst = address;
        copy.src = reinterpret_cast<uint64_t>(page.data());
        copy.len = page.size();
        const int result = ::ioctl(fd(), UFFDIO_COPY, &copy);
        if (result == 0 || errno != EAGAIN) return given(address, result);
    }
}

Result<void> Userfault::give_zeros(uint64_t address) const {
    for (;;) {
        uffdio_zeropage zero{};
        zero.range = {address, kPage};
        const int result = ::ioctl(fd(), UFFDIO_ZEROPAGE, &zero);
        if (result == 0 || errno != EAGAIN) return given(address, result);
    }
}

Result<void> Userfault::fill(uint64_t address, std::span<const std::byte> pages) const {
    while (!pages.empty()) {
        uffdio_copy copy{};
        copy.dst = address;
        copy.src = reinterpret_cast<uint64_t>(pages.data());
        copy.len = pages.size();
        const int result = ::ioctl(fd(), UFFDIO_COPY, &copy);
        if (result < 0 && copy.copy <= 0 && errno == EEXIST)
            return Error(ErrorCode::kInternal, "a page of RAM was touched before it had come");
        if (result < 0 && copy.copy <= 0 && errno != EAGAIN)
            return Error::from_errno("put a page of RAM in place");
        const size_t put = copy.copy > 0 ? static_cast<size_t>(copy.copy) : 0;
        address += put;
        pages = pages.subspan(put);
    }
    return {};
}

Result<void> Userfault::given(uint64_t address, int result) const {
    if (result == 0) return {};
    if (errno == EEXIST) { // another process of this guest was first, or it was asked for twice
        uffdio_range range{address, kPage};
        ::ioctl(fd(), UFFDIO_WAKE, &range);
        return {};
    }
    if (errno == ENOENT || errno == ESRCH) return {}; // what was mapped there is gone, and so is who waited
    return Error::from_errno("give a page of RAM");
}

} // namespace liveupdate::vmm
