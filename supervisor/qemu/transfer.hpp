// One transfer of a guest from one QEMU to another by one way: what is set for it, the order, and how far
// both have come, as their events tell it.
#pragma once

#include <optional>
#include <string>

#include "supervisor/qemu/qemu_process.hpp"
#include "supervisor/qemu/ways.hpp"

namespace liveupdate::supervisor::qemu {

// The capabilities of `way` on, those of the others off. A QEMU says no to what its host cannot do, such as
// userfaultfd for postcopy.
Result<void> set_capabilities(QemuProcess& qemu, Way way, Deadline deadline, int cancel_fd);

// Whatever an earlier update by cpr-transfer has left.
Result<void> back_to_common_mode(QemuProcess& qemu, Deadline deadline, int cancel_fd);

class Transfer {
public:
    // All outlive it.
    Transfer(Way way, QemuProcess& source, QemuProcess& destination, const QemuFolder& folder)
        : way_(way), folder_(folder), source_{source}, destination_{destination} {}

    // Before the guest is touched: parameters, and a destination that listens.
    Result<void> set_up(Deadline deadline, int cancel_fd);
    // The order to the source. With cpr-transfer the destination's monitor is connected after it.
    Result<void> begin(Deadline deadline);
    // Takes in what both have said. An error: it has failed, or one has ended that is needed; the guest may
    // be in the source all the same, see past_return().
    Result<void> look();
    // After look() has failed: whether the source has closed its monitor, as it does when it dies.
    bool source_is_gone() const { return source_.gone; }
    // For a source that is gone, or says nothing: waits for what is on its way, and true when the destination
    // has all of the guest. finished() holds then.
    bool settle_without_source(Deadline deadline);
    // Takes in the destination's words alone, whatever has become of the source.
    void look_at_destination();
    // Until one of them has something to say.
    void wait(Deadline deadline) const;

    Way way() const { return way_; }
    // The source does not run the guest by itself any more, and the destination can be made to run it.
    bool loaded() const;
    // And nothing of the guest is in the source any more.
    bool finished() const { return source_.completed && destination_.completed; }
    // The source may have given away pages that it does not get back.
    bool past_return() const { return source_.in_postcopy; }

    const std::optional<uint64_t>& stopped_us() const { return stopped_us_; } // by QEMU's clock
    const std::optional<uint64_t>& resumed_us() const { return resumed_us_; }

private:
    struct Side {
        QemuProcess& qemu;
        bool gone = false;
        bool completed = false;
        bool in_postcopy = false;
    };
    Result<void> note(Side& side);
    Result<void> ask_destination();

    Way way_;
    const QemuFolder& folder_;
    Side source_, destination_;
    std::optional<uint64_t> stopped_us_, resumed_us_;
};

} // namespace liveupdate::supervisor::qemu
