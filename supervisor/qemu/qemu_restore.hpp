// One restore of one guest of QEMU: a QEMU is started as for an update, and what it gets comes out of the
// file. run() is the whole path.
//
// The guest is nobody's until all of it is loaded; on failure no QEMU of it lives and the save is as it was.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "handoff/save/reader.hpp"
#include "supervisor/guest_driver.hpp"
#include "supervisor/qemu/qemu_guest.hpp"

namespace liveupdate::supervisor::qemu {

struct RestoredQemu {
    QemuGuest guest;
    QemuProcess vmm;
    RestoreReport report;
};

class QemuRestore {
public:
    struct Context {
        const VmConfig& config;
        const Paths& paths;
        const QemuFolder& folder; // nobody of the guest lives
        const Shelter& shelter;
    };
    QemuRestore(Context context, const RestoreRequest& request);

    Result<RestoredQemu> run();

private:
    Result<void> open_save();
    Result<void> make_guest();
    Result<void> fill_ram();
    Result<void> start_qemu();
    Result<void> load();
    Result<void> let_run();

    std::string image_path() const;
    std::vector<uint64_t> image_sums() const;
    Result<void> check_ram() const;
    Result<void> make_files();
    Result<void> give_new_generation();
    Result<void> check_arguments() const;
    Result<void> take_beside();

    Context at_;
    const RestoreRequest request_;
    const std::string path_; // of the file
    Deadline deadline_ = Deadline::never();
    std::unique_ptr<handoff::save::Reader> save_;
    RestoredQemu restored_;
    bool in_place_ = false;   // RAM is the file beside
    bool mapped_ram_ = false; // the file beside is QEMU's own
    bool image_ = false;      // the file beside is an image of it
};

} // namespace liveupdate::supervisor::qemu
