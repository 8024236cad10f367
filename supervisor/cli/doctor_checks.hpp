// What `liveupdate doctor` looks at. Each check changes nothing that stays.
#pragma once

#include <string>
#include <vector>

#include "supervisor/paths.hpp"

namespace liveupdate::supervisor::cli {

enum class Verdict { kOk, kWarn, kFail };
std::string_view to_string(Verdict verdict);

struct Check {
    std::string name;
    Verdict verdict = Verdict::kOk;
    std::string found;  // what was seen
    std::string advice; // what to do; empty when all is well
};

std::vector<Check> check_kvm();
std::vector<Check> check_host(const Paths& paths);
// The VMM binaries of the configured VMs (or the default one), and every supervisor.
std::vector<Check> check_vms(const Paths& paths);

} // namespace liveupdate::supervisor::cli
