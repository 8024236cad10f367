#include "supervisor/named_ram.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>

#include "handoff/base/fd.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::supervisor {
namespace {

namespace fs = std::filesystem;

handoff::RamBlock block_in(const std::string& directory) {
    auto block = handoff::create_ram_block("ram0", handoff::RamKind::kTmpfs, 8192, directory);
    REQUIRE_MESSAGE(block.has_value(), (block ? "" : block.error().message));
    return std::move(*block);
}

TEST_CASE("a RAM block gets a name, and loses it again unless it is kept") {
    const tests::TemporaryFolder shm("/dev/shm");
    const handoff::RamBlock block = block_in(shm.at(""));
    {
        NamedRam named;
        REQUIRE(named.link(block, shm.at(""), shm.at(""), "web1"));
        CHECK(fs::file_size(shm.at("ram0")) == 8192);
    }
    CHECK_FALSE(fs::exists(shm.at("ram0")));
}

TEST_CASE("a block that has its name already keeps it") {
    const tests::TemporaryFolder shm("/dev/shm");
    const handoff::RamBlock block = block_in(shm.at(""));
    NamedRam first;
    REQUIRE(first.link(block, shm.at(""), shm.at(""), "web1"));
    first.keep();
    {
        NamedRam again;
        CHECK(again.link(block, shm.at(""), shm.at(""), "web1"));
    }
    CHECK(fs::exists(shm.at("ram0")));
}

TEST_CASE("a named block is opened by one guest at a time, and locked for as long as anybody has it") {
    const tests::TemporaryFolder shm("/dev/shm");
    NamedRam named;
    UniqueFd vmm;
    {
        const handoff::RamBlock block = block_in(shm.at(""));
        REQUIRE(named.link(block, shm.at(""), shm.at(""), "web1"));
        vmm = std::move(*fd::dup(block.file.get())); // as a VMM gets it
    }
    const auto busy = open_named_ram(shm.at(""), "ram0");
    REQUIRE_FALSE(busy);
    CHECK(busy.error().code == ErrorCode::kBusy);
    vmm.reset();
    const auto opened = open_named_ram(shm.at(""), "ram0");
    CHECK(opened);
    CHECK_FALSE(open_named_ram(shm.at(""), "ram0"));
}

TEST_CASE("another file of that name, another file system and anonymous memory are refused in words") {
    const tests::TemporaryFolder shm("/dev/shm"), disk;
    const handoff::RamBlock block = block_in(shm.at(""));
    NamedRam named;
    std::ofstream(shm.at("ram0")) << "somebody else's";
    CHECK(named.link(block, shm.at(""), shm.at(""), "web1").error().message.find("exists") !=
          std::string::npos);
    CHECK(named.link(block, disk.at(""), shm.at(""), "web1").error().message.find("not on the file system") !=
          std::string::npos);
    const auto memfd = handoff::create_ram_block("ram0", handoff::RamKind::kMemfd, 8192);
    REQUIRE(memfd);
    CHECK(named.link(*memfd, disk.at(""), "", "web1").error().message.find("anonymous memory") !=
          std::string::npos);
    CHECK_FALSE(fs::exists(disk.at("ram0")));
}

} // namespace
} // namespace liveupdate::supervisor
