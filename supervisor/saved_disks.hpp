// The disks that a guest writes to, copied into the folder of its save while it stands still.
#pragma once

#include <string>
#include <vector>

#include "handoff/base/result.hpp"
#include "supervisor/config.hpp"
#include "supervisor/guest_files.hpp"
#include "supervisor/save_request.hpp"

namespace liveupdate::supervisor {

class SavedDisks {
public:
    SavedDisks() = default;
    SavedDisks(const SavedDisks&) = delete;
    SavedDisks& operator=(const SavedDisks&) = delete;
    ~SavedDisks(); // removes what has been copied, unless keep() was called

    // While the guest still runs: whether all can be copied. A guest that is to go on must not stand still
    // for as long as a copy takes that shares no blocks; such a save is refused.
    static Result<void> check(
        const VmConfig& config, const GuestFiles& files, const std::string& directory, AfterSave after);
    // What the guest has in flight is in its state and is done again, so that it need not be in the copy.
    Result<void> copy(
        const VmConfig& config, const GuestFiles& files, const std::string& directory, int cancel_fd);
    void keep() { copied_.clear(); }

private:
    std::vector<std::string> copied_; // paths
};

// Of disk number `index`.
std::string saved_disk(const std::string& directory, size_t index);

} // namespace liveupdate::supervisor
