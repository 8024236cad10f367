#include "supervisor/guest_restore.hpp"

#include <fcntl.h>
#include <google/protobuf/util/message_differencer.h>
#include <unistd.h>

#include <algorithm>

#include "handoff/base/fd.hpp"
#include "handoff/base/words.hpp"
#include "handoff/save/nbd_uri.hpp"
#include "handoff/transfer_area.hpp"
#include "supervisor/named_ram.hpp"
#include "supervisor/used_save.hpp"

namespace liveupdate::supervisor {
namespace {

using handoff::proto::Message;
using handoff::save::is_nbd_uri;
using handoff::save::Place;

constexpr handoff::Participant kVmm = 1;
constexpr handoff::Participant kFile = 2;             // this process, in the source's place
constexpr auto kStartTime = std::chrono::seconds(30); // of the VMM, until it is prepared
constexpr auto kArmTime = std::chrono::seconds(30);
constexpr auto kAnswerTime = std::chrono::seconds(5);
constexpr size_t kMostWords = 300;
constexpr const char* kRestoreCapability = "restore";
constexpr const char* kLazyCapability = "lazy-ram";
constexpr const char* kLazyNbdCapability = "lazy-ram-nbd";

bool is_ram(const std::string& block) {
    return block.starts_with("ram");
}

// The saved guest as the source that it was, in the versions that its sections have.
handoff::proto::Offer offer_of(const handoff::proto::SavedGuest& guest, const RestoreRequest& request) {
    handoff::proto::Offer offer = guest.source();
    offer.clear_saves();
    for (const auto& each : guest.sections()) {
        auto* const saves = offer.add_saves();
        saves->set_kind(each.section().kind());
        saves->set_oldest(each.section().version());
        saves->set_newest(each.section().version());
    }
    offer.add_required_capabilities(kRestoreCapability);
    if (request.ram == RestoreRam::kLazy)
        offer.add_required_capabilities(is_nbd_uri(request.from) ? kLazyNbdCapability : kLazyCapability);
    if (request.ram == RestoreRam::kMapped) offer.add_required_capabilities(handoff::kOriginCapability);
    if (request.identity == Identity::kNew && guest.manifest().machine().generation_id_gpa() != 0)
        offer.add_required_capabilities(handoff::kGenerationCapability);
    return offer;
}

template <typename Step>
Result<void> timed(uint64_t& us, Step step) {
    const uint64_t before = monotonic_ns();
    auto done = step();
    us = (monotonic_ns() - before) / 1000;
    return done;
}

} // namespace

GuestRestore::GuestRestore(
    const VmConfig& config, const Paths& paths, const RestoreRequest& request, const Shelter& shelter)
    : config_(config), paths_(paths), request_(request), path_(save_at(request.from)), shelter_(shelter),
      deadline_(Deadline::never()) {}

Result<RestoredGuest> GuestRestore::run() {
    RestoreReport& report = guest_.report;
    const auto make_ready = [&]() -> Result<void> {
        TRY(prepare());
        return arm();
    };
    const auto result = [&]() -> Result<void> {
        TRY(open_save());
        TRY(make_files());
        TRY(timed(report.ram_us, [&] { return fill_ram(); }));
        TRY(timed(report.start_us, [&] { return start_vmm(); }));
        TRY(timed(report.prepare_us, make_ready));
        return hand_over();
    }();
    if (result) {
        report.notes = save_->notes();
        if (request_.identity == Identity::kNew && guest_.files.manifest.machine.generation_id_gpa() == 0)
            report.notes.push_back(
                "the guest was booted without a generation id (by firmware, or by a former VMM), so it does "
                "not learn that it is a copy; make it seed its random numbers anew");
        return std::move(guest_);
    }
    guest_.vmm.kill();
    return Error(result.error()).context("restore " + request_.from);
}

Result<void> GuestRestore::open_save() {
    TRY(check(request_));
    TRY_ASSIGN(save_, handoff::save::Reader::open(path_));
    if (save_->guest().has_qemu())
        return Error(ErrorCode::kRefused, path_ + " is a guest of QEMU, and " + config_.path +
                                              " has another driver; write driver = \"qemu\" in [vmm]");
    return handoff::save::check_blocks_against(save_->guest().manifest(), save_->header().specs())
        .context(path_);
}

// Fresh ones, as for a launch: what the guest sees of them must be what it saw.
Result<void> GuestRestore::make_files() {
    TRY_ASSIGN(guest_.files, GuestFiles::create(config_, paths_));
    TRY(check_machine());
    TRY(check_memory());
    // Epochs go on: in the guest's lifetime none comes twice.
    TRY_ASSIGN(guest_.files.baton_fd, handoff::Baton::create_segment(save_->guest().epoch()));
    TRY_ASSIGN(handoff::Baton baton, handoff::Baton::map(guest_.files.baton_fd.get()));
    *guest_.files.baton = std::move(baton);
    // For as long as the VMM has not taken it, the guest is ours.
    if (!guest_.files.baton->claim(kFile))
        return Error(ErrorCode::kInternal, "a new baton cannot be claimed");
    return {};
}

Result<void> GuestRestore::check_machine() {
    handoff::proto::Machine saved = save_->guest().manifest().machine();
    handoff::proto::Machine& ours = guest_.files.manifest.machine;
    // How it once was booted, and where its console's other end is on this host.
    saved.set_console(ours.console());
    ours.set_cmdline(saved.cmdline());
    ours.set_boot(saved.boot());
    ours.set_generation_id_gpa(saved.generation_id_gpa());
    // A running guest keeps the addresses that its driver has read; see docs/templates.md.
    if (request_.identity == Identity::kNew)
        for (int i = 0; i < std::min(saved.nets_size(), ours.nets_size()); ++i)
            saved.mutable_nets(i)->set_mac(ours.nets(i).mac());
    std::string differences;
    google::protobuf::util::MessageDifferencer differencer;
    differencer.ReportDifferencesToString(&differences);
    if (differencer.Compare(saved, ours)) return {};
    return Error(ErrorCode::kRefused, config_.path +
                                          " describes another machine than the saved one (saved -> "
                                          "in the VM file): " +
                                          printable(differences, kMostWords));
}

Result<void> GuestRestore::check_memory() const {
    const handoff::proto::Manifest& saved = save_->guest().manifest();
    const handoff::proto::Manifest ours = handoff::to_message(guest_.files.manifest);
    bool same = saved.blocks_size() == ours.blocks_size() && saved.regions_size() == ours.regions_size();
    for (int i = 0; same && i < ours.blocks_size(); ++i)
        same = saved.blocks(i).name() == ours.blocks(i).name() &&
               saved.blocks(i).size() == ours.blocks(i).size();
    for (int i = 0; same && i < ours.regions_size(); ++i)
        same = google::protobuf::util::MessageDifferencer::Equals(saved.regions(i), ours.regions(i));
    if (same) return {};
    return Error(ErrorCode::kRefused,
        config_.path +
            " describes other RAM or firmware than the saved guest has; make [[memory]] as it was");
}

handoff::RamBlock* GuestRestore::block_of(const std::string& name) {
    for (handoff::RamBlock& block : guest_.files.manifest.blocks)
        if (block.name == name) return &block;
    return nullptr;
}

Result<void> GuestRestore::fill_ram() {
    TRY(save_->load_tables());
    if (request_.ram == RestoreRam::kMapped) TRY(map_origin());
    const auto specs = save_->header().specs();
    for (size_t i = 0; i < specs.size(); ++i) {
        handoff::RamBlock* const block = block_of(specs[i].name);
        if (block == nullptr) return Error(ErrorCode::kInternal, "RAM block " + specs[i].name + " is gone");
        if (specs[i].place == Place::kBeside) {
            TRY(take_beside(*block));
            continue;
        }
        TRY(handoff::set_space_aside(*block));
        if (request_.ram == RestoreRam::kEager || !is_ram(specs[i].name))
            TRY(save_->read_block(i, block->file.get(), block->kind));
    }
    save_->close_idle(); // a server of one client at a time waits for that before it takes the VMM
    return {};
}

// Opened once more: what comes page by page goes through the host's page cache, which all guests of one
// origin share.
Result<void> GuestRestore::map_origin() {
    for (const handoff::RamBlock& block : guest_.files.manifest.blocks)
        if (is_ram(block.name) && !handoff::comes_by_pages(block.kind))
            return Error(ErrorCode::kInvalid,
                "RAM on a hugetlbfs or a disk cannot come page by page; restore without --mapped, or take "
                "another backing in [[memory]]");
    TRY_ASSIGN(guest_.files.devices[handoff::kOriginFd],
        fd::open("/proc/self/fd/" + std::to_string(save_->fd()), O_RDONLY).context("open " + path_));
    guest_.files.manifest.machine.set_ram_origin(true);
    return {};
}

Result<void> GuestRestore::take_beside(handoff::RamBlock& block) {
    if (is_nbd_uri(request_.from))
        return Error(ErrorCode::kRefused, "the guest was saved in place: its RAM lies in files beside " +
                                              std::string(handoff::save::kFileName) +
                                              ", which are not in the export; restore it on the host that "
                                              "has them, or save it with --file");
    if (request_.ram != RestoreRam::kEager)
        return Error(ErrorCode::kInvalid,
            "the guest was saved in place, so its RAM is there already; restore it "
            "without --lazy and --mapped");
    in_place_ = true;
    TRY_ASSIGN(UniqueFd file, open_named_ram(request_.from, block.name));
    for (const auto& saved : save_->guest().manifest().blocks()) {
        if (saved.name() != block.name) continue;
        TRY_ASSIGN(const handoff::RamKind kind, handoff::ram_kind_of(saved));
        TRY_ASSIGN(block, handoff::adopt_ram_block(block.name, kind, saved.size(), std::move(file)));
        return {};
    }
    return Error(ErrorCode::kInternal, "RAM block " + block.name + " is gone");
}

Result<void> GuestRestore::start_vmm() {
    deadline_ = Deadline::after(kStartTime);
    TRY_ASSIGN(const OpenBinary binary, OpenBinary::open(config_.vmm_binary));
    const std::string socket = paths_.vm_runtime_dir(config_.name) + "/vmm-1.sock";
    TRY_ASSIGN(guest_.vmm, VmmProcess::spawn(binary, kVmm, socket, deadline_, -1));
    shelter_({guest_.vmm.pid(), guest_.vmm.pidfd(), guest_.vmm.session_file()});
    TRY_ASSIGN(agreement_, handoff::negotiate(offer_of(save_->guest(), request_), guest_.vmm.offer(),
                               handoff::save::sections_of(save_->guest())));
    TRY_ASSIGN(transfer_, handoff::TransferArea::create(agreement_.sections));
    return {};
}

Result<void> GuestRestore::prepare() {
    Message message;
    auto& order = *message.mutable_prepare();
    *order.mutable_manifest() = handoff::to_message(guest_.files.manifest);
    order.set_participant(kVmm);
    order.set_source_participant(kFile);
    handoff::add_sections(agreement_.sections, order.mutable_sections());
    order.set_fixed_state(save_->guest().fixed_state());
    order.set_populate(config_.populate);
    order.set_new_generation(request_.identity == Identity::kNew);
    *order.mutable_saved_clocks() = save_->guest().clocks();
    auto fds = guest_.files.to_send();
    fds.push_back({"transfer", transfer_.get()});
    if (request_.ram == RestoreRam::kLazy) {
        order.set_lazy_ram(true);
        order.set_save_sum(save_->header().sum());
        if (is_nbd_uri(request_.from)) {
            order.set_save_uri(request_.from);
            order.set_ram_timeout_ms(static_cast<uint32_t>(request_.ram_timeout.count()));
        } else {
            fds.push_back({"save", save_->fd()});
        }
    }
    TRY(guest_.vmm.request(std::move(message), fds, Message::kPrepared, deadline_)
            .context("the VMM prepares"));
    return {};
}

Result<void> GuestRestore::arm() {
    TRY_ASSIGN(handoff::TransferArea area, handoff::TransferArea::map(transfer_.get(), agreement_.sections));
    area_.emplace(std::move(area));
    for (size_t i = 0; i < agreement_.sections.size(); ++i)
        TRY(area_->put(i, handoff::TransferRun::kReal, save_->guest().sections(static_cast<int>(i)).state()));
    Message message;
    message.mutable_arm()->set_deadline_ns(Deadline::after(kArmTime).ns());
    TRY(guest_.vmm.request(std::move(message), {}, Message::kArmed, deadline_).context("arm the VMM"));
    return {};
}

Result<void> GuestRestore::hand_over() {
    area_->stamp(handoff::Moment::kOffered);
    if (in_place_) TRY(use_up_save(path_));
    if (!guest_.files.baton->offer(kFile, kVmm))
        return Error(ErrorCode::kInternal, "the baton cannot be offered");
    guest_.files.baton->ring();
    const auto said = guest_.vmm.await(Message::kSwitched, Deadline::after(kArmTime + kAnswerTime));
    const bool ours = guest_.files.baton->take_back(kFile); // fails once the VMM has taken the guest
    if (!ours && guest_.files.baton->held_by(kVmm) && guest_.vmm.alive()) {
        if (in_place_) forget_used_save(path_);
        const uint64_t entered = area_->moment(handoff::Moment::kLastEntered);
        const uint64_t offered = area_->moment(handoff::Moment::kOffered);
        guest_.report.entered_ns = entered;
        guest_.report.hand_over_us = entered > offered ? (entered - offered) / 1000 : 0;
        return {};
    }
    if (ours && in_place_) put_save_back(path_); // it has not run, and will not
    if (!said) return Error(said.error()).context("load the saved state");
    return Error(ErrorCode::kRefused, "the saved state was refused: " + said->message.switched().reason());
}

} // namespace liveupdate::supervisor
