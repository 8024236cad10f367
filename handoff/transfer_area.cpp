#include "handoff/transfer_area.hpp"

#include <algorithm>
#include <cstring>
#include <new>

#include "handoff/base/futex.hpp"
#include "handoff/base/words.hpp"

namespace liveupdate::handoff {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kMagic = 0x4c555f5452414e53; // "LU_TRANS"
constexpr size_t kReasonBytes = 512;
constexpr auto kAwaitSlice = std::chrono::milliseconds(5);

constexpr uint64_t page_up(uint64_t n) {
    return (n + kPage - 1) / kPage * kPage;
}

} // namespace

struct TransferArea::Header {
    uint64_t magic;
    uint32_t sections;
    std::atomic<uint32_t> refused;   // 1: `reason` is set
    std::atomic<uint32_t> withdrawn; // 1: no state will come
    uint32_t unused;
    std::atomic<uint64_t> moments[16];
    char reason[kReasonBytes];
};
static_assert(static_cast<size_t>(Moment::kCount) <= 16);

struct TransferArea::Entry {
    std::atomic<uint32_t> run; // futex: the TransferRun whose bytes lie here
    std::atomic<uint32_t> size;
    std::atomic<uint64_t> put_ns;
    std::atomic<uint64_t> loaded_ns;
    uint64_t unused[5];
};

namespace {

Result<void> check(const std::vector<SectionInfo>& sections) {
    if (sections.empty()) return Error(ErrorCode::kRefused, "there is no state section at all");
    if (sections.size() > kMaxSections)
        return Error(ErrorCode::kRefused, std::to_string(sections.size()) +
                                              " state sections are more than the " +
                                              std::to_string(kMaxSections) + " that an update may have");
    for (size_t i = 0; i < sections.size(); ++i) {
        const SectionInfo& s = sections[i];
        if (s.kind.empty() || s.kind.size() > 64)
            return Error(ErrorCode::kRefused,
                "a state section has a name of " + std::to_string(s.kind.size()) + " bytes");
        if (s.capacity == 0 || s.capacity > kMaxSectionBytes)
            return Error(ErrorCode::kRefused, "state section " + s.name() + " wants " +
                                                  std::to_string(s.capacity) + " bytes; 1 to " +
                                                  std::to_string(kMaxSectionBytes) + " are allowed");
        for (size_t j = 0; j < i; ++j)
            if (sections[j].name() == s.name())
                return Error(ErrorCode::kRefused, "state section " + s.name() + " is there twice");
    }
    return {};
}

} // namespace

std::string_view to_string(Moment moment) {
    switch (moment) {
    case Moment::kPauseAsked:
        return "pause asked";
    case Moment::kFirstStopped:
        return "first vCPU stopped";
    case Moment::kLastStopped:
        return "last vCPU stopped";
    case Moment::kOffered:
        return "baton offered";
    case Moment::kTaken:
        return "baton taken";
    case Moment::kFirstEntered:
        return "first vCPU entered";
    case Moment::kLastEntered:
        return "last vCPU entered";
    case Moment::kTakenTsc:
        return "host TSC when the baton was taken";
    case Moment::kCount:
        break;
    }
    return "unknown";
}

TransferArea::TransferArea(SharedMapping mapping, std::vector<SectionInfo> sections)
    : mapping_(std::move(mapping)), sections_(std::move(sections)) {
    uint64_t at = page_up(sizeof(Header) + sections_.size() * sizeof(Entry));
    for (const SectionInfo& s : sections_) {
        offsets_.push_back(at);
        at += page_up(s.capacity);
    }
    offsets_.push_back(at);
}

Result<UniqueFd> TransferArea::create(const std::vector<SectionInfo>& sections) {
    TRY(check(sections));
    const uint64_t size = TransferArea({}, sections).offsets_.back();
    TRY_ASSIGN(UniqueFd file, create_sealed_memfd("liveupdate-transfer", size));
    TRY_ASSIGN(SharedMapping mapping, SharedMapping::map(file.get(), 0, size, MapMode::kShared));
    auto* header = new (mapping.data()) Header{};
    header->magic = kMagic;
    header->sections = static_cast<uint32_t>(sections.size());
    return file;
}

Result<TransferArea> TransferArea::map(int fd, std::vector<SectionInfo> sections) {
    TRY(check(sections));
    TRY_ASSIGN(const uint64_t size, sealed_size(fd, "the transfer area"));
    TransferArea area({}, std::move(sections));
    if (size != area.offsets_.back())
        return Error(ErrorCode::kRefused, "the transfer area has " + std::to_string(size) +
                                              " bytes; its sections need " +
                                              std::to_string(area.offsets_.back()));
    TRY_ASSIGN(area.mapping_, SharedMapping::map(fd, 0, size, MapMode::kShared));
    if (area.header().magic != kMagic || area.header().sections != area.sections_.size())
        return Error(ErrorCode::kRefused, "the transfer area's header does not match its sections");
    // Touched now, so that the blackout does not pay for these faults.
    auto* bytes = area.mapping_.data();
    for (uint64_t at = 0; at < size; at += kPage)
        static_cast<void>(*static_cast<volatile std::byte*>(bytes + at));
    return area;
}

TransferArea::Header& TransferArea::header() const {
    return *reinterpret_cast<Header*>(mapping_.data());
}
TransferArea::Entry& TransferArea::entry(size_t index) const {
    return reinterpret_cast<Entry*>(mapping_.data() + sizeof(Header))[index];
}
std::byte* TransferArea::bytes_of(size_t index) const {
    return mapping_.data() + offsets_[index];
}

Result<void> TransferArea::put(size_t index, TransferRun run, std::string_view bytes) {
    if (bytes.size() > sections_[index].capacity)
        return Error(ErrorCode::kInternal, "state section " + sections_[index].name() + " has " +
                                               std::to_string(bytes.size()) + " bytes, more than the " +
                                               std::to_string(sections_[index].capacity) + " it announced");
    Entry& e = entry(index);
    std::memcpy(bytes_of(index), bytes.data(), bytes.size());
    e.size.store(static_cast<uint32_t>(bytes.size()), std::memory_order_relaxed);
    e.put_ns.store(monotonic_ns(), std::memory_order_relaxed);
    e.run.store(static_cast<uint32_t>(run), std::memory_order_release);
    futex_wake_all(&e.run, FutexScope::kShared);
    return {};
}

bool TransferArea::is_put(size_t index, TransferRun run) const {
    return entry(index).run.load(std::memory_order_acquire) == static_cast<uint32_t>(run);
}

Result<std::string> TransferArea::await(size_t index, TransferRun run, Deadline deadline) const {
    Entry& e = entry(index);
    for (;;) {
        const uint32_t seen = e.run.load(std::memory_order_acquire);
        if (seen == static_cast<uint32_t>(run)) break;
        if (withdrawn()) return Error(ErrorCode::kAborted, "the source has given the update up");
        if (refused()) return Error(ErrorCode::kAborted, "the state has been refused: " + refusal());
        if (deadline.passed())
            return Error(ErrorCode::kTimeout, "state section " + sections_[index].name() + " did not come");
        // In slices: `refused` and `withdrawn` are other words than the one slept on.
        futex_wait(&e.run, seen, deadline.earlier(Deadline::after(kAwaitSlice)), FutexScope::kShared);
    }
    const uint32_t size = e.size.load(std::memory_order_relaxed);
    if (size > sections_[index].capacity)
        return Error(ErrorCode::kRefused, "state section " + sections_[index].name() + " claims " +
                                              std::to_string(size) + " bytes; it announced at most " +
                                              std::to_string(sections_[index].capacity));
    return std::string(reinterpret_cast<const char*>(bytes_of(index)), size);
}

void TransferArea::refuse(std::string_view reason) {
    Header& h = header();
    const size_t n = std::min(reason.size(), kReasonBytes - 1);
    std::memcpy(h.reason, reason.data(), n);
    h.reason[n] = '\0';
    h.refused.store(1, std::memory_order_release);
    for (size_t i = 0; i < sections_.size(); ++i)
        futex_wake_all(&entry(i).run, FutexScope::kShared);
}

void TransferArea::withdraw() {
    header().withdrawn.store(1, std::memory_order_release);
    for (size_t i = 0; i < sections_.size(); ++i)
        futex_wake_all(&entry(i).run, FutexScope::kShared);
}

bool TransferArea::refused() const {
    return header().refused.load(std::memory_order_acquire) != 0;
}
bool TransferArea::withdrawn() const {
    return header().withdrawn.load(std::memory_order_acquire) != 0;
}

std::string TransferArea::refusal() const {
    char copy[kReasonBytes];
    std::memcpy(copy, header().reason, sizeof(copy));
    copy[kReasonBytes - 1] = '\0';
    return printable(copy, kReasonBytes);
}

void TransferArea::stamp(Moment moment) {
    record(moment, monotonic_ns());
}
void TransferArea::record(Moment moment, uint64_t value) {
    header().moments[static_cast<size_t>(moment)].store(value, std::memory_order_relaxed);
}
void TransferArea::stamp_first(Moment moment) {
    uint64_t unset = 0;
    header().moments[static_cast<size_t>(moment)].compare_exchange_strong(unset, monotonic_ns());
}
uint64_t TransferArea::moment(Moment moment) const {
    return header().moments[static_cast<size_t>(moment)].load(std::memory_order_relaxed);
}
void TransferArea::stamp_loaded(size_t index) {
    entry(index).loaded_ns.store(monotonic_ns(), std::memory_order_relaxed);
}
uint64_t TransferArea::put_ns(size_t index) const {
    return entry(index).put_ns.load(std::memory_order_relaxed);
}
uint64_t TransferArea::loaded_ns(size_t index) const {
    return entry(index).loaded_ns.load(std::memory_order_relaxed);
}

} // namespace liveupdate::handoff
