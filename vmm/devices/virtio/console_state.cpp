// Saving and loading of a virtio console.
#include "vmm/devices/state_message.hpp"
#include "vmm/devices/virtio/console.hpp"
#include "vmm/devices/virtio/console.pb.h"

namespace liveupdate::vmm::virtio {
namespace {

// A buffer of 4 GiB or more is none.
constexpr uint64_t kMostTaken = UINT32_MAX;

Result<void> check_bytes(const state::VirtioConsole& in) {
    TRY(check_at_most("input's length", in.input().size(), ConsolePort::kInputCapacity));
    TRY(check_at_most("output's length", in.output().size(), ConsolePort::kOutputCapacity));
    return check_at_most("taken_of_next", in.taken_of_next(), kMostTaken);
}

} // namespace

Result<std::string> ConsolePort::save() const {
    state::VirtioConsole message;
    transport().save(*message.mutable_transport());
    {
        const std::lock_guard lock(mutex_);
        message.set_input(input_.content());
        message.set_output(output_.content());
        message.set_taken_of_next(taken_of_next_);
        message.set_dropped_output(dropped_output_);
    }
    return serialise_state(message);
}

Result<void> ConsolePort::load(std::string_view bytes, uint32_t version) {
    const std::string what = std::string("state of ") + kSection;
    state::VirtioConsole message;
    TRY(parse_state(message, bytes, version, {kSection, kStateVersion, kOldestLoadable}));
    auto queues = transport().check(message.transport());
    if (!queues) return std::move(queues).error().context(what);
    if (auto good = check_bytes(message); !good) return std::move(good).error().context(what);
    transport().apply(message.transport(), std::move(*queues));
    const std::lock_guard lock(mutex_);
    input_.assign(message.input());
    output_.assign(message.output());
    taken_of_next_ = message.taken_of_next();
    dropped_output_ = message.dropped_output();
    output_full_ = false;
    return {};
}

} // namespace liveupdate::vmm::virtio
