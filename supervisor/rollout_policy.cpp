#include "supervisor/rollout_policy.hpp"

#include "handoff/base/fd.hpp"
#include "supervisor/config_reader.hpp"

namespace liveupdate::supervisor {
namespace {

constexpr size_t kLongestFile = size_t{1} << 20;
constexpr int64_t kMostVms = 256;

void read_rollout(Section section, RolloutPolicy& policy) {
    section.choice("policy", {"automatic", "flag", "window"}, policy.mode);
    section.string("window", policy.window);
    section.integer("canary", 0, kMostVms, policy.canary);
    section.integer("parallel", 1, kMostVms, policy.parallel);
    if (policy.mode == RolloutMode::kWindow && policy.window.empty())
        section.complain("policy", "\"window\" needs a time; write for example window = \"Sun 03:00\"");
    section.finish();
}

} // namespace

Result<RolloutPolicy> parse_rollout_policy(std::string_view toml, const std::string& path) {
    RolloutPolicy policy;
    Complaints complaints(path);
    const auto parsed = toml::parse(toml, path);
    if (!parsed) {
        complaints.add(parsed.error().source().begin, parsed.error().description());
        return complaints.result().error();
    }
    Section top(complaints, "", &parsed.table());
    read_rollout(Section(complaints, "[rollout]", top.table("rollout")), policy);
    top.finish();
    TRY(complaints.result());
    return policy;
}

Result<RolloutPolicy> load_rollout_policy(const std::string& path) {
    const auto toml = fd::read_file(path, kLongestFile);
    if (!toml && toml.error().system_errno == ENOENT) return RolloutPolicy{};
    if (!toml) return toml.error();
    return parse_rollout_policy(*toml, path);
}

} // namespace liveupdate::supervisor
