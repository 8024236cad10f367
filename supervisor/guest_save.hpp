// One save of one guest: a switchover whose destination is this process. run() is the whole path.
//
// Runs on the update's thread and blocks there. On every failure the guest goes on in the source, and what
// was written is removed. Who has the guest is told by the baton alone, as in an update.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "handoff/save/saved_guest.pb.h"
#include "handoff/save/writer.hpp"
#include "handoff/transfer_area.hpp"
#include "handoff/write_map.hpp"
#include "supervisor/config.hpp"
#include "supervisor/guest_driver.hpp"
#include "supervisor/guest_files.hpp"
#include "supervisor/named_ram.hpp"
#include "supervisor/origin_pages.hpp"
#include "supervisor/save_request.hpp"
#include "supervisor/saved_disks.hpp"
#include "supervisor/vmm_process.hpp"

namespace liveupdate::supervisor {

class GuestSave {
public:
    struct Context {
        const VmConfig& config;
        GuestFiles& files;
        VmmProcess& source; // after a run() that was to stop the guest: none
        const UpdateHooks& hooks;
    };
    GuestSave(Context context, SaveRequest request);

    Result<SaveReport> run();

private:
    Result<void> open_file();
    Result<void> describe();
    Result<void> write_while_it_runs();
    Result<void> stop_guest();
    Result<void> write_ram();
    Result<void> copy_disks();
    Result<void> let_guest_go_on();
    Result<void> publish();
    Result<void> end_guest();
    Result<void> finish_file();

    void reach(SaveStep step) const;
    Result<void> collect_state();
    Result<void> track(handoff::proto::TrackWrites::Way way, const std::vector<handoff::FdToSend>& fds);
    // Of one block: the pages that it has, those of its origin too, and those that the VMM's map names.
    handoff::save::PageMap touched(size_t block) const;
    handoff::save::PageMap all_pages(size_t block) const;
    handoff::save::PageMap written(size_t block) const;
    Result<void> write_pages(const std::function<handoff::save::PageMap(size_t block)>& which);
    Result<void> write_origin(size_t block, handoff::save::PageMap& which);
    uint64_t count_written() const;
    handoff::save::Place place_of(const handoff::RamBlock& block) const;
    bool still_offered() const;
    Error why_not_stopped(const Error& seen);
    void give_back(const std::string& why);
    void note_stand_still();

    Context at_;
    SaveRequest request_;
    handoff::Participant me_;
    uint64_t began_ns_;
    SaveReport report_;
    NamedRam named_;
    SavedDisks disks_;
    std::optional<OriginPages> origin_; // of a guest whose RAM has one
    std::unique_ptr<handoff::save::Writer> writer_;
    handoff::proto::SavedGuest state_;
    UniqueFd transfer_;
    std::optional<handoff::TransferArea> area_;
    std::optional<handoff::WriteMap> writes_; // of a guest that runs while it is saved
    handoff::BatonWord offered_{};
    bool described_ = false; // the source believes in an update
    bool stopped_ = false;   // and has been told to stop the guest
    bool ended_ = false;     // the guest is in the file and nowhere else
    bool published_ = false;
};

} // namespace liveupdate::supervisor
