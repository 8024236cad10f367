#include "supervisor/qemu/recovery.hpp"

#include <unistd.h>

#include "supervisor/qemu/run_state.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

constexpr auto kLook = std::chrono::milliseconds(1);

void pause() {
    ::usleep(std::chrono::microseconds(kLook).count());
}

bool in_postcopy(const std::string& status) {
    return status.starts_with("postcopy") && status != "postcopy-paused";
}

Result<bool> is_by_postcopy(QemuProcess& source, Deadline deadline) {
    TRY_ASSIGN(const nlohmann::json all, source.execute("query-migrate-capabilities", nullptr, deadline));
    for (const nlohmann::json& each : all)
        if (word_in(each, "capability") == "postcopy-ram") return each.value("state", false);
    return false;
}

// Until all pages have crossed; a source that ends too early makes the destination say so. kOther stands for
// the destination.
Result<PostcopyOwner> await_pages(QemuProcess& destination, Deadline deadline) {
    TRY_ASSIGN(const bool whole,
        has_come_whole(destination, deadline).context("pages of the guest's RAM are still on their way"));
    return whole ? PostcopyOwner::kOther : PostcopyOwner::kNobody;
}

// The guest is on offer; whether the source was told to begin with postcopy nobody knows any more. So it is
// told again, and the destination gets the guest, unless the source turns out to have all of it.
Result<PostcopyOwner> go_on(
    QemuProcess& source, QemuProcess& destination, handoff::Baton& baton, Deadline deadline) {
    auto started = start_postcopy(source, deadline);
    if (!started && started.error().code == ErrorCode::kRefused)
        return PostcopyOwner::kOwner; // not even begun
    TRY(started);
    for (;; pause()) {
        const auto status = migration_status(source, deadline);
        if (!status && source.alive()) return status.error();
        if (!status) {
            TRY_ASSIGN(const bool whole, has_come_whole(destination, deadline));
            if (!whole) return PostcopyOwner::kNobody;
            break;
        }
        const std::string& here = *status;
        if (here == "failed" || here == "cancelled") return PostcopyOwner::kOwner;
        const auto there = migration_status(destination, deadline);
        const bool gone = !there && there.error().code == ErrorCode::kPeerGone;
        if (!there && !gone) return there.error();
        if (here == "postcopy-paused" || (gone && here == "completed")) return PostcopyOwner::kNobody;
        if (there && (in_postcopy(*there) || *there == "completed")) break;
        if (deadline.passed()) return Error(ErrorCode::kTimeout, "an update by postcopy does not go on");
    }
    if (!baton.take(destination.participant()))
        return Error(ErrorCode::kInternal, "the guest is not on offer to the destination");
    TRY(destination.execute("cont", nullptr, deadline));
    return await_pages(destination, deadline);
}

} // namespace

Result<PostcopyOwner> settle_postcopy(
    QemuProcess& owner, QemuProcess* other, handoff::Baton& baton, Deadline deadline) {
    const handoff::BatonWord word = baton.read();
    if (word.state == handoff::BatonState::kOffered) {
        TRY_ASSIGN(const bool by_postcopy, is_by_postcopy(owner, deadline));
        if (!by_postcopy) return PostcopyOwner::kOwner;
        if (other != nullptr && other->participant() == word.heir)
            return go_on(owner, *other, baton, deadline);
        TRY_ASSIGN(const bool all, has_all_pages(owner, deadline));
        return all ? PostcopyOwner::kOwner : PostcopyOwner::kNobody;
    }
    const auto here = migration_status(owner, deadline);
    if (!here) return here.error();
    if (!here->starts_with("postcopy")) return PostcopyOwner::kOwner;
    if (*here == "postcopy-paused") return PostcopyOwner::kNobody;
    TRY(owner.execute("cont", nullptr, deadline));
    TRY_ASSIGN(const PostcopyOwner found, await_pages(owner, deadline));
    return found == PostcopyOwner::kOther ? PostcopyOwner::kOwner : found;
}

} // namespace liveupdate::supervisor::qemu
