// One save of one guest of QEMU: its RAM by this process, which has the files, and all else by QEMU itself.
// run() is the whole path.
//
// The guest is on offer to this process while it stands still, so a successor of a supervisor that dies gives
// it back to the QEMU that has it. On every failure the guest goes on there, and what was written is removed.
//
// Runs on the update's thread and blocks there.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "handoff/save/saved_guest.pb.h"
#include "handoff/save/writer.hpp"
#include "supervisor/guest_driver.hpp"
#include "supervisor/named_ram.hpp"
#include "supervisor/qemu/qemu_guest.hpp"
#include "supervisor/saved_disks.hpp"

namespace liveupdate::supervisor::qemu {

class QemuSave {
public:
    struct Context {
        const VmConfig& config;
        const QemuFolder& folder;
        QemuGuest& guest;
        QemuProcess& source; // after a run() that was to stop the guest: none
        const UpdateHooks& hooks;
    };
    QemuSave(Context context, SaveRequest request);
    QemuSave(const QemuSave&) = delete;
    QemuSave& operator=(const QemuSave&) = delete;
    ~QemuSave();

    Result<SaveReport> run();

private:
    Result<void> check_source();
    Result<void> open_file();
    Result<void> describe();
    Result<void> stop_guest();
    Result<void> write_ram();
    Result<void> copy_disks();
    Result<void> let_guest_go_on();
    Result<void> end_guest();
    Result<void> publish();
    Result<void> finish_file();

    void reach(SaveStep step) const;
    bool makes_image() const { return request_.ram == SaveRam::kImage; }
    Result<void> check_private(Deadline deadline);
    Result<void> check_devices() const;
    Result<void> check_places() const;
    void describe_machine();
    Result<void> open_disks();
    Result<void> make_writer(uint64_t size, handoff::save::Place place);
    Result<void> write_mapped_ram();
    Result<void> sum_mapped_ram();
    void remove_former_files() const;
    Error in_time(Error error) const;
    void note_stand_still();
    Result<void> give_back();

    Context at_;
    SaveRequest request_;
    handoff::Participant me_;
    uint64_t began_ns_;
    SaveReport report_;
    handoff::RamBlock ram_;
    GuestFiles disk_files_; // the disks, as SavedDisks takes them, and nothing else
    std::string image_;     // the path, once it is there; removed unless it is to stay
    NamedRam named_;
    SavedDisks disks_;
    std::unique_ptr<handoff::save::Writer> writer_;
    handoff::proto::SavedGuest state_;
    UniqueFd time_up_; // readable when the guest has stood still for too long
    UniqueFd halt_;    // readable when that is, or somebody has asked for an end
    Deadline limit_ = Deadline::never();
    uint64_t stopped_us_ = 0; // by QEMU's clock
    bool mapped_ram_ = false; // QEMU writes RAM, too
    bool offered_ = false;    // the word names this process as the heir
    bool stopped_ = false;    // the source has been told to stop the guest, and not yet to run it on
    bool ended_ = false;      // the guest is in the file and nowhere else
    bool published_ = false;  // the save has its name
};

} // namespace liveupdate::supervisor::qemu
