// The folder of a guest's QEMUs in the runtime folder: mode 0700, since who can open it owns the guest.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"

namespace liveupdate::supervisor::qemu {

class QemuFolder {
public:
    explicit QemuFolder(std::string path) : path_(std::move(path)) {}
    const std::string& path() const { return path_; }

    Result<void> make() const;
    std::string life_file() const { return path_ + "/life"; }
    std::string migration_socket() const { return path_ + "/migration.sock"; }
    std::string cpr_socket() const { return path_ + "/cpr.sock"; }
    // Where a destination of cpr-transfer listens, as QMP's `migrate` takes it.
    nlohmann::json migration_channels() const;

    // A descriptor for a QEMU that is about to be started: as long as any process has one of these open,
    // nobody_lives() is false.
    Result<UniqueFd> life() const;
    // Waits until the deadline for the end of every QEMU of this guest.
    Result<bool> nobody_lives(Deadline deadline) const;

private:
    std::string path_;
};

} // namespace liveupdate::supervisor::qemu
