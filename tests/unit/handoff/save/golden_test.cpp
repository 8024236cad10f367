// Files of each version of the format that has ever shipped are read for ever. A new version adds its golden
// file here; none is ever changed.
#include <fstream>

#include "tests/support/command.hpp"
#include "tests/unit/handoff/save/fixture.hpp"

namespace liveupdate::handoff::save {
namespace {

struct GoldenGuest {
    std::vector<BlockSpec> blocks = {{"ram0", 24 * kPage, Place::kHere}, {"ram1", 8 * kPage, Place::kBeside}};
    Memory ram0{blocks[0].size};
    GoldenGuest() {
        for (const uint64_t page : {0, 3, 4, 23})
            ram0.fill(page);
    }
};

std::string golden(const std::string& name) {
    const std::string path = std::string(LIVEUPDATE_SOURCE_DIR) + "/tests/golden/" + name + ".gz";
    const auto unpacked = tests::run_command({"gzip", "-dc", path});
    REQUIRE(unpacked.status == 0);
    return unpacked.out;
}

} // namespace

TEST_CASE("the golden file of version 1 is read as what it was written from") {
    const tests::TemporaryFolder folder;
    const GoldenGuest guest;
    const std::string path = folder.at("v1");
    std::ofstream(path, std::ios::binary) << golden("guest-v1.save");
    auto reader = must(Reader::open(path));
    CHECK(reader->header().specs() == guest.blocks);
    CHECK(reader->guest().SerializeAsString() == sample_guest(guest.blocks).SerializeAsString());
    must(reader->load_tables());
    const Memory ram0(guest.blocks[0].size);
    must(reader->read_block(0, ram0.bytes()));
    CHECK(ram0 == guest.ram0);
}

TEST_CASE("what is written today is the golden file of version 1, byte for byte") {
    const tests::TemporaryFolder folder;
    const GoldenGuest guest;
    auto writer = must(Writer::create(folder.at(""), guest.blocks));
    must(writer->write_pages(0, guest.ram0.bytes(), all_pages(guest.blocks[0].size)));
    must(writer->finish(sample_guest(guest.blocks).SerializeAsString()));
    must(writer->publish());
    // LIVEUPDATE_WRITE_GOLDEN=FILE: how the file was made.
    if (const char* const target = std::getenv("LIVEUPDATE_WRITE_GOLDEN"))
        std::filesystem::copy_file(writer->path(), target);
    CHECK(must(fd::read_file(writer->path())) == golden("guest-v1.save"));
}

} // namespace liveupdate::handoff::save
