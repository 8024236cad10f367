#include "handoff/save/header.hpp"

#include "handoff/save/checksum.hpp"
#include "tests/unit/handoff/support.hpp"

namespace liveupdate::handoff::save {
namespace {

Header sample() {
    Header header;
    header.blocks.push_back({{"ram0", 3 * kChunk + kPage, Place::kHere}, 17, 5});
    header.blocks.push_back({{"ram1", kChunk, Place::kBeside}, 0, 0});
    header.blocks.push_back({{"firmware", kPage, Place::kHere}, 18, 1});
    header.state_size = 5000;
    header.state_sum = 19;
    return header;
}

uint64_t size_of(const Header& header) {
    return header.layout().file_size(header.state_size);
}

// With the right checksum again: what a hostile writer can make.
void seal(HeaderPage& page) {
    const uint64_t sum = checksum({reinterpret_cast<const char*>(page.data()), 4088});
    for (size_t i = 0; i < 8; ++i)
        page[4088 + i] = static_cast<std::byte>(sum >> (8 * i) & 0xff);
}

std::string refusal(const HeaderPage& page, uint64_t size) {
    const auto decoded = decode(page, size);
    REQUIRE_FALSE(decoded);
    const bool later = decoded.error().message.find("use the release that wrote it") != std::string::npos;
    CHECK(decoded.error().code == (later ? ErrorCode::kUnsupported : ErrorCode::kRefused));
    return decoded.error().message;
}

} // namespace

TEST_CASE("the layout is the documented one") {
    const Layout layout = sample().layout();
    CHECK(layout.blocks[0].bitmap_at == 4096);
    CHECK(layout.blocks[0].sums_at == 8192);
    CHECK(layout.blocks[0].pages_at == kChunk);
    CHECK(layout.blocks[1].pages_at == 0);
    CHECK(layout.blocks[2].bitmap_at == 12288);
    CHECK(layout.blocks[2].sums_at == 16384);
    CHECK(layout.blocks[2].pages_at == 5 * kChunk);
    CHECK(layout.state_at == 6 * kChunk);
    CHECK(size_of(sample()) == 6 * kChunk + 8192);
}

TEST_CASE("a header comes back as it was") {
    const auto decoded = must(decode(encode(sample()), size_of(sample())));
    CHECK(decoded.specs() == sample().specs());
    CHECK(decoded.blocks[0].tables_sum == 17);
    CHECK(decoded.blocks[0].written == 5);
    CHECK(decoded.blocks[2].tables_sum == 18);
    CHECK(decoded.state_size == 5000);
    CHECK(decoded.state_sum == 19);
}

TEST_CASE("each flipped bit of a header is refused") {
    const HeaderPage page = encode(sample());
    for (size_t bit = 0; bit < kPage * 8; ++bit) {
        HeaderPage flipped = page;
        flipped[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
        if (decode(flipped, size_of(sample()))) FAIL("bit " << bit << " was not missed");
    }
}

TEST_CASE("a header that contradicts itself is refused although its checksum is right") {
    // What may be otherwise in a header that is right: names, sizes that lead to the same layout, sums,
    // counts.
    const auto may_differ = [](size_t at) {
        if (at < 128) return at == 32 || at == 33 || (at >= 40 && at < 48);
        const size_t block = (at - 128) / 96, offset = (at - 128) % 96;
        if (block >= 3) return false;
        if (block == 1) return offset < 40;
        return offset < 40 || (offset >= 64 && offset < 72) || (offset >= 80 && offset < 88);
    };
    size_t refused = 0;
    for (size_t at = 12; at < 4088; ++at) {
        HeaderPage page = encode(sample());
        page[at] ^= std::byte{1};
        seal(page);
        const bool taken = decode(page, size_of(sample())).has_value();
        if (taken && !may_differ(at)) FAIL("byte " << at << " was not missed");
        if (!taken) ++refused;
    }
    CHECK(refused > 3900);
}

TEST_CASE("a foreign, a too new and a cut file are told apart") {
    HeaderPage page = encode(sample());
    CHECK(contains(refusal(page, size_of(sample()) - 4096), "cut"));
    page[8] = std::byte{2};
    seal(page);
    CHECK(contains(refusal(page, size_of(sample())), "version 2"));
    page[0] = std::byte{'P'};
    CHECK(contains(refusal(page, size_of(sample())), "no file of a saved guest"));
}

TEST_CASE("impossible blocks are refused by name") {
    const auto refused = [](std::vector<BlockSpec> blocks, const std::string& words) {
        const auto checked = check_blocks(blocks);
        REQUIRE_FALSE(checked);
        CHECK(contains(checked.error().message, words));
    };
    refused({}, "0 RAM blocks");
    refused(std::vector<BlockSpec>(33, {"a", kPage, Place::kHere}), "33 RAM blocks");
    refused({{"../x", kPage, Place::kBeside}}, "'../x'");
    refused({{"ram0", 4095, Place::kHere}}, "4095");
    refused({{"ram0", kMaxBlockBytes + kPage, Place::kHere}}, "impossible size");
    refused({{"ram0", kPage, static_cast<Place>(3)}}, "unknown place");
    refused({{"ram0", kPage, Place::kHere}, {"ram0", kPage, Place::kHere}}, "twice");
}

} // namespace liveupdate::handoff::save
