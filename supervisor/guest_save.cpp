#include "supervisor/guest_save.hpp"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "handoff/base/fd.hpp"
#include "handoff/base/host_clocks.hpp"
#include "handoff/negotiation.hpp"
#include "supervisor/left_over_save.hpp"
#include "supervisor/touched_pages.hpp"

namespace liveupdate::supervisor {
namespace {

using handoff::proto::Message;
using handoff::save::PageMap;
using handoff::save::Place;

constexpr auto kBeginTime = std::chrono::seconds(10); // to the beginning of the pause
constexpr auto kAnswerTime = std::chrono::seconds(5); // for answers that need no work
constexpr auto kStopTime = std::chrono::seconds(5);   // for the source to stop the guest and put its state
constexpr auto kEndTime = std::chrono::seconds(40);   // as after an update: a slow disk's requests end first

constexpr uint64_t kMostPasses = 8;  // over what the guest has written meanwhile
constexpr uint64_t kFewPages = 1024; // are written while the guest stands still

Error too_long() {
    return {ErrorCode::kTimeout,
        "writing took longer than the guest may stand still; give more time with --timeout"};
}

} // namespace

GuestSave::GuestSave(Context context, SaveRequest request)
    : at_(std::move(context)), request_(std::move(request)),
      me_(handoff::next_participant(at_.source.participant())), began_ns_(monotonic_ns()) {}

Result<SaveReport> GuestSave::run() {
    const auto result = [&]() -> Result<void> {
        TRY(open_file());
        TRY(named_.sync(at_.hooks.cancel_fd));
        TRY(describe());
        reach(SaveStep::kDescribed);
        if (request_.meanwhile == WhileSaving::kRuns) TRY(write_while_it_runs());
        TRY(stop_guest());
        reach(SaveStep::kStopped);
        TRY(write_ram());
        TRY(copy_disks());
        reach(SaveStep::kWritten);
        // RAM is read: a guest that goes on does so before the file is synced.
        if (request_.after == AfterSave::kGoOn) TRY(let_guest_go_on());
        TRY(finish_file());
        reach(SaveStep::kFinished);
        // A file is whole whoever has the guest; RAM that stays is the guest's until that has ended.
        if (request_.kind == SaveKind::kFile) TRY(publish());
        if (request_.after == AfterSave::kStop) TRY(end_guest());
        reach(SaveStep::kTaken);
        return request_.kind == SaveKind::kFile ? Result<void>() : publish();
    }();
    if (ended_) at_.source.wait_or_kill(Deadline::after(kEndTime));
    if (!result) {
        give_back(result.error().message);
        Error error = Error(result.error()).context("save " + at_.config.name);
        if (!ended_ && at_.source.alive() && at_.files.baton->held_by(at_.source.participant()))
            error.message += "; the guest runs on";
        if (published_ && !ended_) error.message += "; as it was, it has been saved in " + writer_->path();
        if (ended_ && !published_)
            error.message += "; the guest has ended and is whole in " + writer_->new_path();
        return error;
    }
    named_.keep();
    report_.path = writer_->path();
    report_.written_bytes = writer_->bytes_written();
    report_.notes = writer_->notes();
    report_.after = request_.after;
    report_.duration_us = (monotonic_ns() - began_ns_) / 1000;
    return report_;
}

// Tests of what the end of this process leaves behind.
void GuestSave::reach(SaveStep step) const {
    if (request_.die_at == step) ::kill(::getpid(), SIGKILL);
}

Place GuestSave::place_of(const handoff::RamBlock& block) const {
    const bool is_ram = block.name.starts_with("ram");
    return request_.kind == SaveKind::kInPlace && is_ram ? Place::kBeside : Place::kHere;
}

Result<void> GuestSave::open_file() {
    if (at_.files.origin() >= 0 && request_.kind == SaveKind::kInPlace)
        return Error(ErrorCode::kRefused, "the guest's RAM is not whole in its own files: what it has not "
                                          "touched yet lies in the save that "
                                          "it was restored from; save it without --in-place");
    const handoff::Manifest& manifest = at_.files.manifest;
    for (const handoff::RamBlock& block : manifest.blocks)
        if (request_.disks == SaveDisks::kCopy && !handoff::comes_by_pages(block.kind))
            return Error(ErrorCode::kRefused,
                "RAM on a hugetlbfs or a disk cannot come page by page, as that "
                "of clones does; make the template of a guest that was started "
                "with another [[memory]] backing");
    TRY(check_left_over(request_.directory, manifest.blocks));
    std::vector<handoff::save::BlockSpec> specs;
    size_t ram = 0; // the VM file's blocks come first, in its order
    for (const handoff::RamBlock& block : manifest.blocks) {
        specs.push_back({block.name, block.size, place_of(block)});
        if (block.name.starts_with("ram")) report_.ram_bytes += block.size;
        if (specs.back().place == Place::kBeside) {
            // The file may have been changed since the guest was started.
            if (ram >= at_.config.memory.size())
                return Error(ErrorCode::kInvalid,
                    at_.config.path + " has fewer [[memory]] than the running guest, which could not be "
                                      "restored with it; make [[memory]] as it was");
            TRY(named_.link(block, request_.directory, at_.config.memory[ram].directory, at_.config.name));
        }
        if (block.name.starts_with("ram")) ++ram;
    }
    handoff::save::IoOptions options;
    options.cancel_fd = at_.hooks.cancel_fd;
    if (const int origin = at_.files.origin(); origin >= 0) {
        TRY_ASSIGN(origin_, OriginPages::open(origin, options));
    }
    TRY_ASSIGN(writer_, handoff::save::Writer::create(request_.directory, specs, options));
    if (request_.disks == SaveDisks::kCopy)
        TRY(SavedDisks::check(at_.config, at_.files, request_.directory, request_.after));
    return {};
}

Result<void> GuestSave::describe() {
    Message message;
    message.mutable_describe();
    TRY_ASSIGN(const handoff::Received described, at_.source
                                                      .request(std::move(message), {}, Message::kDescription,
                                                          Deadline::after(kAnswerTime), at_.hooks.cancel_fd)
                                                      .context("ask the VMM for its guest"));
    described_ = true;
    const auto& description = described.message.description();
    const auto sections = handoff::sections_from(description.sections());
    TRY_ASSIGN(transfer_, handoff::TransferArea::create(sections));
    TRY_ASSIGN(handoff::TransferArea area, handoff::TransferArea::map(transfer_.get(), sections));
    area_.emplace(std::move(area));
    state_.set_vm(at_.config.name);
    state_.set_config(request_.config_text);
    *state_.mutable_source() = at_.source.offer();
    *state_.mutable_manifest() = handoff::to_message(at_.files.manifest);
    state_.mutable_manifest()->mutable_machine()->clear_ram_origin(); // all of RAM will be in the file
    state_.set_fixed_state(description.fixed_state());
    return {};
}

// The source stops the guest, puts its state, and offers it to us; it takes it back when we die, when we
// refuse it, or when the time is over.
Result<void> GuestSave::stop_guest() {
    TRY_ASSIGN(const UniqueFd self, fd::pidfd_open(::getpid()));
    Message message;
    auto& order = *message.mutable_switchover();
    order.set_deadline_ns(Deadline::after(kBeginTime).ns());
    order.set_blackout_limit_ns(static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(request_.timeout).count()));
    order.set_destination_participant(me_);
    handoff::add_sections(area_->sections(), order.mutable_sections());
    const handoff::BatonWord before = at_.files.baton->read();
    TRY(at_.source.send(std::move(message), {{"transfer", transfer_.get()}, {"destination", self.get()}},
        Deadline::after(kBeginTime)));
    stopped_ = true;
    TRY(collect_state());
    const auto settled = [&](handoff::BatonWord word) { return word != before; };
    offered_ = at_.files.baton->wait(settled, Deadline::after(kStopTime));
    if (!still_offered()) return why_not_stopped({ErrorCode::kTimeout, "the guest was not offered"});
    state_.set_epoch(offered_.epoch);
    return {};
}

Result<void> GuestSave::collect_state() {
    const Deadline deadline = Deadline::after(kBeginTime + kStopTime);
    const auto& sections = area_->sections();
    for (size_t i = 0; i < sections.size(); ++i) {
        auto bytes = area_->await(i, handoff::TransferRun::kReal, deadline);
        if (!bytes) return why_not_stopped(bytes.error());
        handoff::proto::SavedSection& out = *state_.add_sections();
        out.mutable_section()->set_kind(sections[i].kind);
        out.mutable_section()->set_instance(sections[i].instance);
        out.mutable_section()->set_version(sections[i].version);
        out.mutable_section()->set_capacity(sections[i].capacity);
        out.set_state(std::move(*bytes));
    }
    const HostClocks clocks = host_clocks();
    state_.mutable_clocks()->set_monotonic_ns(clocks.monotonic_ns);
    state_.mutable_clocks()->set_tsc(clocks.tsc);
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    state_.set_saved_unix_ms(
        static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count()));
    return {};
}

// The source's own words, when it has any.
Error GuestSave::why_not_stopped(const Error& seen) {
    const auto said = at_.source.await(Message::kSwitched, Deadline::after(kAnswerTime));
    if (!said) return said.error(); // it may still stop the guest: it is told to go on
    stopped_ = described_ = false;
    return said->message.switched().reason().empty()
               ? seen
               : Error(ErrorCode::kRefused, said->message.switched().reason());
}

PageMap GuestSave::touched(size_t index) const {
    const handoff::RamBlock& block = at_.files.manifest.blocks[index];
    return touched_pages(block.file.get(), block.size);
}

PageMap GuestSave::all_pages(size_t index) const {
    PageMap pages = touched(index);
    if (const PageMap* more = origin_ ? origin_->pages(at_.files.manifest.blocks[index].name) : nullptr)
        more->runs({0, pages.pages()}, [&](handoff::save::PageRun run) { pages.set_run(run); });
    return pages;
}

// A copy: the map is the VMM's.
PageMap GuestSave::written(size_t index) const {
    const uint64_t pages = handoff::save::pages_in(at_.files.manifest.blocks[index].size);
    const auto bytes = writes_->of(index).first(handoff::save::bitmap_bytes(pages * handoff::save::kPage));
    return {pages, std::vector<uint8_t>(bytes.begin(), bytes.end())};
}

uint64_t GuestSave::count_written() const {
    uint64_t pages = 0;
    for (size_t i = 0; i < at_.files.manifest.blocks.size(); ++i)
        pages += written(i).count();
    return pages;
}

Result<void> GuestSave::write_pages(const std::function<PageMap(size_t)>& which) {
    for (size_t i = 0; i < at_.files.manifest.blocks.size(); ++i) {
        const handoff::RamBlock& block = at_.files.manifest.blocks[i];
        if (place_of(block) != Place::kHere) continue;
        PageMap pages = which(i);
        if (origin_ && origin_->pages(block.name) != nullptr) TRY(write_origin(i, pages));
        TRY_ASSIGN(const auto ram,
            handoff::SharedMapping::map(block.file.get(), 0, block.size, handoff::MapMode::kReadOnly));
        TRY(writer_->write_pages(i, ram.bytes(), pages));
    }
    return {};
}

// What the block lacks comes from the origin and is taken out of `which`. A page that a guest which runs
// touches meanwhile is the same there, or has been written, and then comes again.
Result<void> GuestSave::write_origin(size_t index, PageMap& which) {
    const handoff::RamBlock& block = at_.files.manifest.blocks[index];
    const PageMap own = touched(index);
    PageMap lacking(which.pages());
    which.runs({0, which.pages()}, [&](handoff::save::PageRun run) {
        for (uint64_t page = run.first; page < run.first + run.count; ++page)
            if (!own.test(page)) lacking.set(page);
    });
    lacking.runs({0, which.pages()}, [&](handoff::save::PageRun run) {
        for (uint64_t page = run.first; page < run.first + run.count; ++page)
            which.clear(page);
    });
    TRY_ASSIGN(const auto ram, origin_->map(block.name));
    return writer_->write_pages(index, ram.bytes(), lacking);
}

Result<void> GuestSave::track(
    handoff::proto::TrackWrites::Way way, const std::vector<handoff::FdToSend>& fds) {
    Message message;
    message.mutable_track_writes()->set_way(way);
    TRY(at_.source.request(
        std::move(message), fds, Message::kWritesTracked, Deadline::after(kAnswerTime), at_.hooks.cancel_fd));
    return {};
}

// All of RAM, then, a few times, what the guest has written meanwhile. It is stopped when that is little, or
// does not become less.
Result<void> GuestSave::write_while_it_runs() {
    const auto& can = at_.source.offer().capabilities();
    if (std::find(can.begin(), can.end(), "track-writes") == can.end())
        return Error(ErrorCode::kUnsupported, "the VMM that runs the guest cannot track what it writes; save "
                                              "without --live, or update it first");
    TRY_ASSIGN(const UniqueFd file, handoff::WriteMap::create(at_.files.manifest));
    TRY_ASSIGN(handoff::WriteMap map, handoff::WriteMap::map(file.get(), at_.files.manifest));
    writes_.emplace(std::move(map));
    TRY(track(handoff::proto::TrackWrites::BEGIN, {{"writes", file.get()}}));
    TRY(write_pages([&](size_t block) { return all_pages(block); }));
    for (uint64_t before = UINT64_MAX; report_.passes < kMostPasses; ++report_.passes) {
        TRY(track(handoff::proto::TrackWrites::COLLECT, {}));
        const uint64_t pages = count_written();
        TRY(write_pages([&](size_t block) { return written(block); }));
        if (pages <= kFewPages || pages > before / 2) return {};
        before = pages;
    }
    return {};
}

// Of a guest that ran meanwhile, what it has written since the last pass, and all of what is not its RAM.
Result<void> GuestSave::write_ram() {
    TRY(write_pages([&](size_t block) {
        const bool is_ram = at_.files.manifest.blocks[block].name.starts_with("ram");
        return writes_ && is_ram ? written(block) : all_pages(block);
    }));
    return still_offered() ? Result<void>() : too_long();
}

Result<void> GuestSave::copy_disks() {
    if (request_.disks == SaveDisks::kLeave) return {};
    TRY(disks_.copy(at_.config, at_.files, request_.directory, at_.hooks.cancel_fd));
    if (!still_offered())
        return Error(ErrorCode::kTimeout,
            "copying the disks took longer than the guest may stand still; give more time with --timeout");
    return {};
}

bool GuestSave::still_offered() const {
    const handoff::BatonWord word = at_.files.baton->read();
    return word == offered_ && word.state == handoff::BatonState::kOffered && word.heir == me_;
}

void GuestSave::note_stand_still() {
    const uint64_t stopped = area_->moment(handoff::Moment::kFirstStopped);
    if (stopped != 0) report_.stood_still_us = (monotonic_ns() - stopped) / 1000;
}

// The source takes back what we do not want.
Result<void> GuestSave::let_guest_go_on() {
    area_->refuse("the guest has been saved");
    at_.files.baton->ring();
    const auto said = at_.source.await(Message::kSwitched, Deadline::after(kAnswerTime));
    note_stand_still();
    stopped_ = described_ = false;
    if (!said) return Error(said.error()).context("let the guest go on");
    return {};
}

Result<void> GuestSave::publish() {
    if (request_.after == AfterSave::kStop && !ended_ && !still_offered()) return too_long();
    TRY(writer_->publish());
    published_ = true;
    disks_.keep();
    return {};
}

// From the taking of the baton on the guest is in the file and nowhere else.
Result<void> GuestSave::end_guest() {
    if (!still_offered() || !at_.files.baton->take(me_)) return too_long();
    ended_ = true;
    writer_->keep();
    named_.keep();
    at_.files.baton->ring();
    note_stand_still();
    stopped_ = described_ = false;
    static_cast<void>(at_.source.await(Message::kSwitched, Deadline::after(kAnswerTime)));
    Message release;
    release.mutable_release();
    static_cast<void>(at_.source.tell(std::move(release)));
    return {};
}

Result<void> GuestSave::finish_file() {
    const uint64_t before = monotonic_ns();
    TRY(named_.sync(at_.hooks.cancel_fd));
    TRY(writer_->finish(state_.SerializeAsString()));
    report_.sync_us = (monotonic_ns() - before) / 1000;
    return {};
}

void GuestSave::give_back(const std::string& why) {
    if (stopped_) {
        area_->refuse(why);
        at_.files.baton->ring();
        static_cast<void>(at_.source.await(Message::kSwitched, Deadline::after(kAnswerTime)));
        described_ = false;
    }
    if (!described_) return;
    Message message;
    message.mutable_abandon();
    static_cast<void>(
        at_.source.request(std::move(message), {}, Message::kAbandoned, Deadline::after(kAnswerTime)));
}

} // namespace liveupdate::supervisor
