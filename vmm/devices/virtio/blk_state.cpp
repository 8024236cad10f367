// Saving and loading of a block device.
#include <algorithm>
#include <set>

#include "vmm/devices/state_message.hpp"
#include "vmm/devices/virtio/blk.hpp"

namespace liveupdate::vmm::virtio {

using namespace blk;

namespace {

Error refused(const std::string& why) {
    return {ErrorCode::kRefused, why};
}

bool known(uint32_t type) {
    return type == kRead || type == kWrite || type == kFlush || type == kDiscard || type == kWriteZeroes;
}

} // namespace

Result<std::string> Blk::save() const {
    state::VirtioBlk message;
    transport().save(*message.mutable_transport());
    const auto add = [&](uint32_t ring, uint32_t tag, const Request& request) {
        state::VirtioBlkRequest& out = *message.add_requests();
        out.set_ring(ring);
        out.set_tag(tag);
        out.set_queue(request.queue);
        out.set_head(request.head);
        out.set_type(request.type);
        out.set_sector(request.sector);
        out.set_length(request.length);
        out.set_done(request.done);
        out.set_status_gpa(request.status_gpa);
        out.set_orphan(request.orphan);
        out.set_bounced(request.bounced);
    };
    for (uint32_t tag = 0; tag < slots_.size(); ++tag) {
        if (!slots_[tag].used) continue;
        const bool taken = std::find(prepared_.begin(), prepared_.end(), tag) == prepared_.end();
        add(taken ? ring_id_ : 0, tag, slots_[tag].request);
    }
    for (const Foreign& foreign : foreign_)
        for (const auto& [tag, request] : foreign.requests)
            add(foreign.ring.id(), tag, request);
    for (const Carried& carried : carried_)
        add(carried.ring, carried.tag, carried.request);
    return serialise_state(message);
}

Result<Blk::Carried> Blk::check_request(const state::VirtioBlkRequest& in) const {
    TRY(check_at_most("tag", in.tag(), kMaxInFlight - 1));
    TRY(check_at_most("queue", in.queue(), config_.queues - 1u));
    TRY(check_at_most("head", in.head(), kQueueSize - 1));
    if (!known(in.type())) return refused("field \"type\" is " + std::to_string(in.type()));
    const bool has_data = in.type() != kFlush;
    TRY(check_at_most("sector", has_data ? in.sector() : 0, config_.capacity));
    TRY(check_at_most(
        "length", in.length(), (config_.capacity - (has_data ? in.sector() : 0)) * kSectorBytes));
    TRY(check_at_most("done", in.done(), in.length()));
    if (!memory().at(in.status_gpa(), 1)) return refused("field \"status_gpa\" is not in the guest's RAM");
    // Begun again, as one that ended in another process (docs/io-across-the-switchover.md).
    const uint32_t ring = former_rings_ == FormerRings::kGone ? 0 : in.ring();
    if (ring != 0 && file_ && std::none_of(foreign_.begin(), foreign_.end(), [&](const Foreign& foreign) {
            return foreign.ring.id() == in.ring();
        }))
        return refused("field \"ring\" is " + std::to_string(in.ring()) + ", which did not come along");
    return Carried{ring, in.tag(),
        {in.queue(), static_cast<uint16_t>(in.head()), in.type(), in.sector(), in.length(), in.done(),
            in.status_gpa(), in.orphan(), in.bounced()}};
}

Result<void> Blk::check_requests(const state::VirtioBlk& in, std::vector<Carried>& out) const {
    TRY(check_at_most("requests' count", static_cast<uint64_t>(in.requests_size()), kMaxInFlight));
    std::set<std::pair<uint32_t, uint32_t>> seen;
    for (const state::VirtioBlkRequest& request : in.requests()) {
        TRY_ASSIGN(Carried carried, check_request(request).context("field \"requests\""));
        if (carried.ring != 0 && !seen.emplace(carried.ring, carried.tag).second)
            return refused("field \"requests\" has two with the tag " + std::to_string(carried.tag));
        out.push_back(carried);
    }
    return {};
}

Result<void> Blk::load(std::string_view bytes, uint32_t version) {
    const StateSchema schema{kSection, kStateVersion, kOldestLoadable, config_.instance};
    state::VirtioBlk message;
    TRY(parse_state(message, bytes, version, schema));
    const std::string where = std::string("state of ") + kSection + " of " + config_.name;
    TRY_ASSIGN(auto queues, transport().check(message.transport()).context(where));
    std::vector<Carried> carried;
    TRY(check_requests(message, carried).context(where));
    transport().apply(message.transport(), std::move(queues));
    carried_ = std::move(carried);
    pending_.store(in_flight());
    unsettled_.store(has_orphans());
    return {};
}

} // namespace liveupdate::vmm::virtio
