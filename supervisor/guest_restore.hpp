// One restore of one guest: an update whose source is a file. run() is the whole path.
//
// Nobody has the guest until the VMM takes the baton at the end; on failure no VMM lives and the save is as
// it was.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "handoff/negotiation.hpp"
#include "handoff/save/reader.hpp"
#include "handoff/transfer_area.hpp"
#include "supervisor/config.hpp"
#include "supervisor/guest_files.hpp"
#include "supervisor/paths.hpp"
#include "supervisor/save_request.hpp"
#include "supervisor/shelter.hpp"
#include "supervisor/vmm_process.hpp"

namespace liveupdate::supervisor {

struct RestoredGuest {
    GuestFiles files;
    VmmProcess vmm;
    RestoreReport report;
};

class GuestRestore {
public:
    GuestRestore(
        const VmConfig& config, const Paths& paths, const RestoreRequest& request, const Shelter& shelter);

    Result<RestoredGuest> run();

private:
    Result<void> open_save();
    Result<void> make_files();
    Result<void> fill_ram();
    Result<void> start_vmm();
    Result<void> prepare();
    Result<void> arm();
    Result<void> hand_over();

    Result<void> check_machine();
    Result<void> check_memory() const;
    handoff::RamBlock* block_of(const std::string& name);
    Result<void> map_origin();
    Result<void> take_beside(handoff::RamBlock& block);

    const VmConfig& config_;
    const Paths& paths_;
    const RestoreRequest request_;
    const std::string path_; // or URI of what is read
    const Shelter& shelter_;
    Deadline deadline_;
    std::unique_ptr<handoff::save::Reader> save_;
    RestoredGuest guest_;
    handoff::Agreement agreement_;
    UniqueFd transfer_;
    std::optional<handoff::TransferArea> area_;
    bool in_place_ = false;
};

} // namespace liveupdate::supervisor
