// QEMU as another release of it: elsewhere, with a build-id of its own, and the same firmware files, which it
// looks for beside itself.
#pragma once

#include <string>

#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {

inline constexpr const char* kQemuPath = "/usr/bin/qemu-system-x86_64";

class OtherQemu {
public:
    OtherQemu(); // of kQemuPath, which exists
    // Takes a name out of the binary by changing its last letter wherever it stands, such as a machine
    // type's.
    void forget(const std::string& name) const;
    // The two names, of equal length, change their places.
    void exchange(const std::string& one, const std::string& other) const;
    std::string path() const { return folder_.at("bin/qemu-system-x86_64"); }

private:
    void change_build_id() const;
    TemporaryFolder folder_;
};

} // namespace liveupdate::tests
