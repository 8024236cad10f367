#include "vmm/devices/virtio/io_ring.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>
#include <string_view>

namespace liveupdate::vmm::virtio {
namespace {

// Requests that may block in the kernel at the same time; each is a thread there.
constexpr unsigned kMaxKernelThreads = 64;

struct Layout {
    io_cqring_offsets offsets;
    size_t size;
};

// The kernel lays all rings out alike: where things lie in one of ours tells it of every other, and no peer
// need be believed.
Result<Layout> completion_layout() {
    static const Result<Layout> kLayout = []() -> Result<Layout> {
        io_uring ring{};
        io_uring_params params{};
        params.flags = IORING_SETUP_CQSIZE;
        params.cq_entries = kCompletionEntries;
        const int made = ::io_uring_queue_init_params(kRingEntries, &ring, &params);
        if (made < 0)
            return Error(ErrorCode::kSystem, std::string("io_uring_setup: ") + std::strerror(-made));
        ::io_uring_queue_exit(&ring);
        return Layout{params.cq_off, params.cq_off.cqes + size_t{kCompletionEntries} * sizeof(io_uring_cqe)};
    }();
    return kLayout;
}

Result<void> check_is_ring(int fd) {
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    std::array<char, 64> target{};
    const ssize_t size = ::readlink(link.c_str(), target.data(), target.size());
    if (size < 0) return Error::from_errno("readlink " + link);
    if (std::string_view(target.data(), static_cast<size_t>(size)) != "anon_inode:[io_uring]")
        return Error(ErrorCode::kRefused, "what came as an io_uring is none");
    return {};
}

} // namespace

Result<std::unique_ptr<IoRing>> IoRing::create() {
    std::unique_ptr<IoRing> made(new IoRing);
    io_uring_params params{};
    params.flags = IORING_SETUP_CQSIZE;
    params.cq_entries = kCompletionEntries;
    const int result = ::io_uring_queue_init_params(kRingEntries, &made->ring_, &params);
    if (result < 0)
        return Error(
            ErrorCode::kUnsupported, std::string("io_uring_setup: ") + std::strerror(-result) +
                                         "; disks need io_uring (see the sysctl kernel.io_uring_disabled)");
    std::array<unsigned, 2> threads{kMaxKernelThreads, kMaxKernelThreads};
    static_cast<void>(::io_uring_register_iowq_max_workers(&made->ring_, threads.data()));
    return made;
}

unsigned IoRing::submit() {
    const int taken = ::io_uring_submit(&ring_);
    return taken > 0 ? static_cast<unsigned>(taken) : 0;
}

uint32_t IoRing::completed() const {
    return __atomic_load_n(ring_.cq.ktail, __ATOMIC_ACQUIRE);
}

Result<ForeignRing> ForeignRing::map(uint32_t id, UniqueFd fd) {
    TRY(check_is_ring(fd.get()));
    TRY_ASSIGN(const Layout layout, completion_layout());
    ForeignRing ring(id, std::move(fd));
    void* at = ::mmap(nullptr, layout.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd_.get(),
        IORING_OFF_CQ_RING);
    if (at == MAP_FAILED) return Error::from_errno("map the io_uring of another process");
    ring.mapping_ = at;
    ring.size_ = layout.size;
    auto* base = static_cast<std::byte*>(at);
    ring.head_ = reinterpret_cast<uint32_t*>(base + layout.offsets.head);
    ring.tail_ = reinterpret_cast<uint32_t*>(base + layout.offsets.tail);
    ring.completions_ = reinterpret_cast<const io_uring_cqe*>(base + layout.offsets.cqes);
    return ring;
}

ForeignRing::ForeignRing(ForeignRing&& other) noexcept
    : id_(other.id_), fd_(std::move(other.fd_)), mapping_(std::exchange(other.mapping_, nullptr)),
      size_(other.size_), head_(other.head_), tail_(other.tail_), completions_(other.completions_) {}

ForeignRing::~ForeignRing() {
    if (mapping_ != nullptr) ::munmap(mapping_, size_);
}

ForeignRing::Completion ForeignRing::completion(uint32_t index) const {
    const io_uring_cqe& cqe = completions_[index % kCompletionEntries];
    return {static_cast<uint32_t>(__atomic_load_n(&cqe.user_data, __ATOMIC_RELAXED)),
        __atomic_load_n(&cqe.res, __ATOMIC_RELAXED)};
}

} // namespace liveupdate::vmm::virtio
