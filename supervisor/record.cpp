#include "supervisor/record.hpp"

#include <array>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>
#include <random>

namespace liveupdate::supervisor {
namespace {

using nlohmann::json;

// In the order of the enumerations.
constexpr std::array<std::string_view, 3> kKinds = {"update", "plan", "rollback"};
constexpr std::array<std::string_view, 8> kOutcomes = {
    "completed", "planned", "nothing-to-do", "refused", "abandoned", "rolled-back", "failed", "lost"};
constexpr std::array<std::string_view, 3> kGuestOn = {"source", "nobody", "destination"};
static_assert(kOutcomes[static_cast<size_t>(Outcome::kLost)] == "lost");
static_assert(kKinds[static_cast<size_t>(UpdateKind::kRollback)] == "rollback");
static_assert(kGuestOn[static_cast<size_t>(GuestOn::kDestination)] == "destination");

template <typename Enum, size_t N>
std::optional<Enum> parse_word(const std::array<std::string_view, N>& words, std::string_view word) {
    for (size_t i = 0; i < N; ++i)
        if (words[i] == word) return static_cast<Enum>(i);
    return std::nullopt;
}

json binary_to_json(const RecordedBinary& b) {
    return {{"binary", b.binary}, {"version", b.version}, {"build_id", b.build_id}};
}

json optional_to_json(const std::optional<uint64_t>& value) {
    return value ? json(*value) : json(nullptr);
}

// The functions below throw json::exception or std::invalid_argument; record_from_json() catches both.

template <typename Enum>
Enum require(std::optional<Enum> value, const std::string& word) {
    if (!value) throw std::invalid_argument("unknown word '" + word + "'");
    return *value;
}

RecordedBinary binary_from_json(const json& j) {
    return {j.at("binary").get<std::string>(), j.at("version").get<std::string>(),
        j.at("build_id").get<std::string>()};
}

uint64_t number_from_json(const json& j) {
    if (!j.is_number_unsigned()) throw std::invalid_argument("expected a number that is not negative");
    return j.get<uint64_t>();
}

std::optional<uint64_t> optional_from_json(const json& j, const char* key) {
    const auto found = j.find(key);
    if (found == j.end() || found->is_null()) return std::nullopt;
    return number_from_json(*found);
}

RecordedPhase phase_from_json(const json& j) {
    const auto guest_on = j.at("guest_on").get<std::string>();
    return {j.at("phase").get<std::string>(), number_from_json(j.at("start_us")),
        number_from_json(j.at("end_us")), require(parse_guest_on(guest_on), guest_on)};
}

UpdateRecord throwing_from_json(const json& j) {
    UpdateRecord r;
    const auto kind = j.at("kind").get<std::string>();
    const auto outcome = j.at("outcome").get<std::string>();
    r.id = j.at("id").get<std::string>();
    r.kind = require(parse_update_kind(kind), kind);
    r.outcome = require(parse_outcome(outcome), outcome);
    r.started_unix_ms = number_from_json(j.at("started_unix_ms"));
    r.duration_us = number_from_json(j.at("duration_us"));
    r.from = binary_from_json(j.at("from"));
    r.to = binary_from_json(j.at("to"));
    for (const json& phase : j.at("phases"))
        r.phases.push_back(phase_from_json(phase));
    r.blackout_us = optional_from_json(j, "blackout_us");
    r.rehearsal_pause_us = optional_from_json(j, "rehearsal_pause_us");
    r.predicted_blackout_us = optional_from_json(j, "predicted_blackout_us");
    r.guest_tsc_at_switchover = optional_from_json(j, "guest_tsc_at_switchover");
    for (const json& part : j.at("blackout_split"))
        r.blackout_split.push_back({part.at("name").get<std::string>(), number_from_json(part.at("us"))});
    r.reason = j.at("reason").get<std::string>();
    r.way = j.value("way", ""); // records of earlier versions have none
    r.way_why = j.value("way_why", "");
    r.vmm_downtime_us = optional_from_json(j, "vmm_downtime_us");
    r.notes = j.value("notes", std::vector<std::string>());
    return r;
}

} // namespace

std::string_view to_string(UpdateKind kind) {
    return kKinds[static_cast<size_t>(kind)];
}
std::string_view to_string(Outcome outcome) {
    return kOutcomes[static_cast<size_t>(outcome)];
}
std::string_view to_string(GuestOn guest_on) {
    return kGuestOn[static_cast<size_t>(guest_on)];
}
std::optional<UpdateKind> parse_update_kind(std::string_view word) {
    return parse_word<UpdateKind>(kKinds, word);
}
std::optional<Outcome> parse_outcome(std::string_view word) {
    return parse_word<Outcome>(kOutcomes, word);
}
std::optional<GuestOn> parse_guest_on(std::string_view word) {
    return parse_word<GuestOn>(kGuestOn, word);
}

nlohmann::json to_json(const UpdateRecord& record) {
    json phases = json::array();
    for (const auto& p : record.phases)
        phases.push_back({{"phase", p.phase}, {"start_us", p.start_us}, {"end_us", p.end_us},
            {"guest_on", to_string(p.guest_on)}});
    json split = json::array();
    for (const auto& part : record.blackout_split)
        split.push_back({{"name", part.name}, {"us", part.us}});
    json whole = {{"id", record.id}, {"kind", to_string(record.kind)}, {"outcome", to_string(record.outcome)},
        {"started_unix_ms", record.started_unix_ms}, {"duration_us", record.duration_us},
        {"from", binary_to_json(record.from)}, {"to", binary_to_json(record.to)},
        {"phases", std::move(phases)}, {"blackout_us", optional_to_json(record.blackout_us)},
        {"rehearsal_pause_us", optional_to_json(record.rehearsal_pause_us)},
        {"predicted_blackout_us", optional_to_json(record.predicted_blackout_us)},
        {"guest_tsc_at_switchover", optional_to_json(record.guest_tsc_at_switchover)},
        {"blackout_split", std::move(split)}, {"reason", record.reason}};
    if (!record.notes.empty()) whole["notes"] = record.notes;
    if (record.way.empty()) return whole;
    whole["way"] = record.way;
    whole["way_why"] = record.way_why;
    whole["vmm_downtime_us"] = optional_to_json(record.vmm_downtime_us);
    return whole;
}

Result<UpdateRecord> record_from_json(const nlohmann::json& json) {
    try {
        return throwing_from_json(json);
    } catch (const std::exception& problem) {
        return Error(ErrorCode::kInvalid, std::string("not an update record: ") + problem.what());
    }
}

std::string update_id(int64_t unix_seconds, uint16_t salt) {
    const time_t seconds = unix_seconds;
    tm utc{};
    ::gmtime_r(&seconds, &utc);
    char stamp[32];
    if (std::strftime(stamp, sizeof(stamp), "%Y%m%d-%H%M%S", &utc) == 0) stamp[0] = '\0';
    char id[64];
    std::snprintf(id, sizeof(id), "u-%s-%04x", stamp, static_cast<unsigned>(salt));
    return id;
}

uint64_t unix_ms() {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

std::string new_update_id() {
    return update_id(std::time(nullptr), static_cast<uint16_t>(std::random_device{}()));
}

} // namespace liveupdate::supervisor
