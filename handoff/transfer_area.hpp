// The transfer area: a sealed memfd, one per update, in which the source puts device state, section by
// section, and the destination finds it. No message passes in the blackout: each section has a word that
// the destination's threads sleep on, the baton says the rest.
//
// Layout (shared between builds, so it only grows): a header, a directory of sections, then each section's
// bytes at a page-aligned offset. Section i of the directory is section i of the negotiated list.
//
// The other side may be hostile: sizes are checked against the directory that was negotiated (kept
// outside the area), and bytes are copied out before they are parsed.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "handoff/shared_memory.hpp"

namespace liveupdate::handoff {

// One piece of device state: kind "vcpu", instance 3. `capacity`: bytes it may need at most.
struct SectionInfo {
    std::string kind;
    uint32_t instance = 0;
    uint32_t version = 1;
    uint32_t capacity = 0;

    std::string name() const { return kind + "/" + std::to_string(instance); }
    bool operator==(const SectionInfo&) const = default;
};

inline constexpr size_t kMaxSections = 1024;
inline constexpr uint32_t kMaxSectionBytes = 1u << 20;

// A rehearsal and the real thing use one area; a section is only taken when it carries the run's number.
enum class TransferRun : uint32_t { kTrial = 1, kReal = 2 };

// Moments of a switchover, in CLOCK_MONOTONIC ns; 0: has not happened.
enum class Moment : uint32_t {
    kPauseAsked,
    kFirstStopped, // the first vCPU left KVM_RUN
    kLastStopped,
    kOffered,
    kTaken,
    kFirstEntered, // the first vCPU is about to enter KVM_RUN in the destination
    kLastEntered,
    kTakenTsc, // not a time: the host's TSC at kTaken
    kCount,
};
std::string_view to_string(Moment moment);

class TransferArea {
public:
    // Checks counts and sizes (kRefused), then makes a memfd for these sections.
    static Result<UniqueFd> create(const std::vector<SectionInfo>& sections);
    // Maps what create() made; refuses a memfd that is unsealed or whose size does not fit `sections`.
    static Result<TransferArea> map(int fd, std::vector<SectionInfo> sections);

    const std::vector<SectionInfo>& sections() const { return sections_; }

    // Source, any thread: publishes a section and wakes whoever waits for it. Too many bytes: kInternal.
    Result<void> put(size_t index, TransferRun run, std::string_view bytes);

    // Destination, any thread: waits until the section is there and copies it out. kAborted once the other
    // side has given up, kTimeout at the deadline.
    Result<std::string> await(size_t index, TransferRun run, Deadline deadline) const;
    bool is_put(size_t index, TransferRun run) const;

    // Destination: the state is refused. The source, which waits for the baton, takes the guest back at once.
    void refuse(std::string_view reason);
    // Source: there will be no state. The destination's waiters wake.
    void withdraw();
    bool refused() const;
    bool withdrawn() const;
    std::string refusal() const; // bounded, printable

    void stamp(Moment moment);       // keeps the latest
    void stamp_first(Moment moment); // keeps the first
    void record(Moment moment, uint64_t value);
    uint64_t moment(Moment moment) const;
    // Per section: when its bytes were put, found by the destination, and loaded.
    void stamp_loaded(size_t index);
    uint64_t put_ns(size_t index) const;
    uint64_t loaded_ns(size_t index) const;

private:
    struct Header;
    struct Entry;
    TransferArea(SharedMapping mapping, std::vector<SectionInfo> sections);
    Header& header() const;
    Entry& entry(size_t index) const;
    std::byte* bytes_of(size_t index) const;

    SharedMapping mapping_;
    std::vector<SectionInfo> sections_;
    std::vector<uint64_t> offsets_;
};

} // namespace liveupdate::handoff
