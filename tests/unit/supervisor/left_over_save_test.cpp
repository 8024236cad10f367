#include "supervisor/left_over_save.hpp"

#include <filesystem>
#include <fstream>

#include "supervisor/named_ram.hpp"
#include "tests/unit/handoff/save/fixture.hpp"

namespace liveupdate::supervisor {
namespace {

namespace fs = std::filesystem;

using handoff::must;
using handoff::RamBlock;
using tests::TemporaryFolder;

RamBlock block_in(const std::string& directory) {
    return must(handoff::create_ram_block("ram0", handoff::RamKind::kTmpfs, 8192, directory));
}

// What is left of a save in place whose supervisor has died before it could rename the file.
struct LeftOver {
    TemporaryFolder folder{"/dev/shm"};
    std::string path = folder.at("guest.save.new");
    std::optional<RamBlock> ram = block_in(folder.at("")); // whoever has it holds the lock
    std::vector<RamBlock> ours;                            // of the guest that is to be saved

    LeftOver() {
        NamedRam named;
        must(named.link(*ram, folder.at(""), folder.at(""), "web1"));
        named.keep();
        const std::vector<handoff::save::BlockSpec> blocks = {{"ram0", 8192, handoff::save::Place::kBeside}};
        const auto writer = must(handoff::save::Writer::create(folder.at(""), blocks));
        must(writer->finish(handoff::save::sample_guest(blocks).SerializeAsString()));
        writer->keep();
    }
    Result<void> check() const { return check_left_over(folder.at(""), ours); }
    void check_refused(ErrorCode code, const char* words) const {
        const auto refused = check();
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code == code);
        CHECK_MESSAGE(refused.error().message.find(words) != std::string::npos, refused.error().message);
        CHECK_MESSAGE(
            refused.error().message.find("guest.save.new") != std::string::npos, refused.error().message);
    }
};

TEST_CASE("what is left of a guest that was saved in place is not written over") {
    LeftOver left;
    left.ram.reset();
    left.check_refused(ErrorCode::kRefused, "may be all there is of it");
}

TEST_CASE("RAM beside a left save that has an owner is not given up, unless the owner is to be saved") {
    LeftOver left;
    left.check_refused(ErrorCode::kBusy, "may be all there is of a guest"); // its VMM still ends
    left.ours.push_back(block_in(left.folder.at("")));
    left.check_refused(ErrorCode::kBusy, "may be all there is of a guest");
    left.ours.push_back(std::move(*left.ram));
    CHECK(left.check());
}

TEST_CASE("a left save of a later version is not written over") {
    LeftOver left;
    left.ram.reset();
    std::fstream file(left.path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(8); // the version
    file.put(2).flush();
    left.check_refused(ErrorCode::kUnsupported, "version 2");
}

TEST_CASE("a left save that cannot be opened is not taken for none") {
    LeftOver left;
    left.ram.reset();
    fs::remove(left.path);
    fs::create_symlink(left.path, left.path);
    left.check_refused(ErrorCode::kSystem, "cannot be looked at");
}

TEST_CASE("RAM beside a left save that cannot be opened is not taken for none") {
    LeftOver left;
    left.ram.reset();
    fs::remove(left.folder.at("ram0"));
    fs::create_directory(left.folder.at("ram0"));
    left.check_refused(ErrorCode::kSystem, "cannot be looked at");
}

TEST_CASE("no left save, a cut one, and one whose RAM is gone are in nobody's way") {
    LeftOver left;
    fs::remove(left.folder.at("ram0"));
    CHECK(left.check());
    fs::resize_file(left.path, fs::file_size(left.path) - 1);
    CHECK(left.check());
    fs::resize_file(left.path, 0);
    CHECK(left.check());
    fs::remove(left.path);
    CHECK(left.check());
}

} // namespace
} // namespace liveupdate::supervisor
