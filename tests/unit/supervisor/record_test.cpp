#include "supervisor/record.hpp"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "sample_record.hpp"
#include "supervisor/update_log.hpp"

using namespace liveupdate;
using namespace liveupdate::supervisor;

TEST_CASE("a record comes back from its JSON text unchanged") {
    UpdateRecord record = sample_record();
    const auto again = [](const UpdateRecord& r) {
        return record_from_json(nlohmann::json::parse(to_json(r).dump()));
    };
    CHECK(again(record).value() == record);
    record.kind = UpdateKind::kRollback;
    record.outcome = Outcome::kRolledBack;
    record.reason = "the destination said \"no\"\n";
    record.blackout_us.reset();
    record.rehearsal_pause_us.reset();
    record.predicted_blackout_us.reset();
    record.phases.clear();
    record.notes = {"the machine is old", "and \"odd\""};
    CHECK(again(record).value() == record);
}

TEST_CASE("every word of an enumeration is read back") {
    for (int i = 0; i <= static_cast<int>(Outcome::kLost); ++i)
        CHECK(parse_outcome(to_string(static_cast<Outcome>(i))) == static_cast<Outcome>(i));
    for (int i = 0; i <= static_cast<int>(UpdateKind::kRollback); ++i)
        CHECK(parse_update_kind(to_string(static_cast<UpdateKind>(i))) == static_cast<UpdateKind>(i));
    for (int i = 0; i <= static_cast<int>(GuestOn::kDestination); ++i)
        CHECK(parse_guest_on(to_string(static_cast<GuestOn>(i))) == static_cast<GuestOn>(i));
    CHECK_FALSE(parse_outcome("splendid").has_value());
}

TEST_CASE("each missing key and each wrong type is refused") {
    UpdateRecord whole = sample_record();
    whole.notes = {"the machine is old"};
    const auto json = nlohmann::json::parse(to_json(whole).dump());
    for (const auto& [key, value] : json.items()) {
        CAPTURE(key);
        auto wrong = json;
        wrong[key] = true;
        CHECK_FALSE(record_from_json(wrong).has_value());
        auto missing = json;
        missing.erase(key);
        const bool optional = key == "blackout_us" || key == "rehearsal_pause_us" ||
                              key == "predicted_blackout_us" || key == "guest_tsc_at_switchover" ||
                              key == "vmm_downtime_us" || key == "way" || key == "way_why" || key == "notes";
        CHECK(record_from_json(missing).has_value() == optional);
    }
    auto negative = json;
    negative["duration_us"] = -1;
    CHECK_FALSE(record_from_json(negative).has_value());
    CHECK_FALSE(record_from_json(nlohmann::json::array()).has_value());
    auto unknown = json;
    unknown["outcome"] = "splendid";
    CHECK(record_from_json(unknown).error().message == "not an update record: unknown word 'splendid'");
}

TEST_CASE("a key of a later version is passed over") {
    auto json = nlohmann::json::parse(to_json(sample_record()).dump());
    json["weather"] = "fine";
    CHECK(record_from_json(json).value() == sample_record());
}

TEST_CASE("a record tells the millisecond of its beginning") {
    const uint64_t before = unix_ms();
    UpdateLog log(UpdateRequest{}, "u-20261122-101530-4f2a", RecordedBinary{}, nullptr);
    const uint64_t began = log.finish().started_unix_ms;
    CHECK(began >= before);
    CHECK(began <= unix_ms());
}

TEST_CASE("an id tells the second of its start") {
    CHECK(update_id(1795342530, 0x4f2a) == "u-20261122-101530-4f2a");
    CHECK(update_id(0, 0) == "u-19700101-000000-0000");
    CHECK(new_update_id().size() == update_id(0, 0).size());
}
