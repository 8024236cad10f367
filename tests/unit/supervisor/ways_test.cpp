#include "supervisor/qemu/ways.hpp"

#include <doctest/doctest.h>

using namespace liveupdate::supervisor::qemu;

namespace {

Offer old_qemu() {
    return {
        "7.2.22", {"events", "late-block-activate", "x-ignore-shared", "postcopy-ram", "release-ram"}, false};
}
Offer new_qemu() {
    Offer offer = old_qemu();
    offer.version = "10.0.13";
    offer.cpr_transfer = true;
    return offer;
}

const GuestFacts kShared{RamPlace::kInFiles, true, false, ""};
const GuestFacts kAllShared{RamPlace::kInFiles, true, true, ""};
const GuestFacts kPrivate{RamPlace::kApart, false, false, ""};

std::string refusal(const Offer& source, const Offer& destination, const GuestFacts& guest,
    std::optional<Way> asked_for = std::nullopt) {
    const auto chosen = choose_way(source, destination, guest, asked_for);
    REQUIRE(!chosen);
    CHECK(chosen.error().code == liveupdate::ErrorCode::kRefused);
    return chosen.error().message;
}

bool says(const std::string& text, const std::string& words) {
    return text.find(words) != std::string::npos;
}

} // namespace

TEST_CASE("RAM in files goes by x-ignore-shared, private RAM by postcopy") {
    CHECK(choose_way(old_qemu(), new_qemu(), kShared, {})->way == Way::kIgnoreShared);
    CHECK(choose_way(new_qemu(), new_qemu(), kAllShared, {})->way == Way::kIgnoreShared);
    CHECK(choose_way(old_qemu(), old_qemu(), kPrivate, {})->way == Way::kPostcopy);
}

TEST_CASE("postcopy is told to have no way back") {
    CHECK(says(choose_way(old_qemu(), old_qemu(), kPrivate, {})->why, "no way back"));
}

TEST_CASE("cpr-transfer is taken when it is asked for, and when QEMU does not migrate the guest otherwise") {
    CHECK(choose_way(new_qemu(), new_qemu(), kAllShared, Way::kCprTransfer)->way == Way::kCprTransfer);
    GuestFacts blocked = kAllShared;
    blocked.blocked = "VFIO";
    CHECK(choose_way(new_qemu(), new_qemu(), blocked, {})->way == Way::kCprTransfer);
    CHECK(says(refusal(new_qemu(), old_qemu(), blocked), "QEMU 7.2.22 has no migration mode"));
    CHECK(says(refusal(new_qemu(), new_qemu(), kShared, Way::kCprTransfer), "aux-ram-share=on"));
}

TEST_CASE("a memfd that QEMU has made itself is in no file, but crosses by cpr-transfer") {
    const GuestFacts memfd{RamPlace::kApart, true, true, ""};
    CHECK(choose_way(new_qemu(), new_qemu(), memfd, {})->way == Way::kCprTransfer);
    CHECK(choose_way(old_qemu(), old_qemu(), memfd, {})->way == Way::kPostcopy);
}

TEST_CASE("RAM that both QEMUs map is never moved by postcopy, not even in part") {
    CHECK(says(refusal(old_qemu(), old_qemu(), kShared, Way::kPostcopy), "would destroy it"));
    const GuestFacts mixed{RamPlace::kMixed, false, false, ""};
    CHECK(says(refusal(old_qemu(), old_qemu(), mixed), "would destroy it"));
}

TEST_CASE("RAM that is a file mapped privately is not moved: its pages would be taken out of the file") {
    const GuestFacts copied{RamPlace::kCopied, false, false, ""};
    for (const auto& asked_for : {std::optional<Way>(), std::optional<Way>(Way::kPostcopy)})
        CHECK(
            says(refusal(new_qemu(), new_qemu(), copied, asked_for), "a file mapped privately (share=off)"));
}

TEST_CASE("a capability that either side lacks is named, with the QEMU that lacks it") {
    for (const char* name : {"events", "late-block-activate", "x-ignore-shared"}) {
        Offer without = old_qemu();
        without.version = "3.1.0";
        without.capabilities.erase(name);
        for (const auto& [source, destination] :
            {std::pair(without, old_qemu()), std::pair(old_qemu(), without)})
            CHECK(says(refusal(source, destination, kShared, Way::kIgnoreShared),
                "QEMU 3.1.0 has no migration capability '" + std::string(name) + "'"));
    }
    Offer without = old_qemu();
    without.capabilities.erase("release-ram");
    CHECK(says(refusal(old_qemu(), without, kPrivate), "release-ram"));
}

TEST_CASE("a guest that QEMU does not migrate is refused in QEMU's words") {
    GuestFacts blocked = kPrivate;
    blocked.blocked = "the device is not migratable";
    CHECK(says(refusal(old_qemu(), old_qemu(), blocked), "the device is not migratable"));
}

TEST_CASE("the names of ways are read as they are written") {
    for (const Way way : {Way::kIgnoreShared, Way::kCprTransfer, Way::kPostcopy})
        CHECK(parse_way(to_string(way)) == way);
    CHECK(!parse_way("teleport"));
    CHECK(names_of_ways() == "x-ignore-shared, cpr-transfer, postcopy");
}
