#include "handoff/manifest.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>

#include <cstring>

#include "handoff/base/fd.hpp"
#include "tests/unit/handoff/support.hpp"

namespace liveupdate::handoff {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kBlock = 16 * kPage;

void add_block(proto::Manifest& message, const std::string& name, uint64_t size = kBlock) {
    auto* block = message.add_blocks();
    block->set_name(name);
    block->set_kind(proto::RAM_KIND_MEMFD);
    block->set_size(size);
}

void add_region(
    proto::Manifest& message, uint64_t gpa, uint64_t size, const std::string& block, uint64_t offset = 0) {
    auto* region = message.add_regions();
    region->set_gpa(gpa);
    region->set_size(size);
    region->set_block(block);
    region->set_offset(offset);
}

// A good manifest of two blocks, for a test to spoil.
proto::Manifest good() {
    proto::Manifest message;
    add_block(message, "ram0");
    add_block(message, "ram1");
    add_region(message, 0x100000, kBlock, "ram0");
    add_region(message, 0, kBlock / 2, "ram1", kBlock / 2);
    message.mutable_machine()->set_vcpus(2);
    message.mutable_machine()->set_cmdline("quiet");
    return message;
}

NamedFds fds_for(const proto::Manifest& message) {
    NamedFds fds;
    for (const auto& block : message.blocks())
        fds[block.name()] = must(create_ram_block(block.name(), RamKind::kMemfd, kBlock)).file;
    return fds;
}

std::string refusal_of(const proto::Manifest& message, NamedFds fds) {
    const size_t before = open_fds() - fds.size();
    std::string words;
    {
        const NamedFds dropped = [&] {
            const auto taken = take_manifest(message, fds);
            REQUIRE_FALSE(taken);
            CHECK((taken.error().code == ErrorCode::kRefused || taken.error().code == ErrorCode::kProtocol));
            words = taken.error().message;
            return std::move(fds);
        }();
    }
    CHECK(open_fds() == before);
    CHECK(words.size() < 1000);
    return words;
}
std::string refusal_of(const proto::Manifest& message) {
    return refusal_of(message, fds_for(message));
}

} // namespace

TEST_CASE("a good manifest is taken, its regions in order, its fds with it") {
    NamedFds fds = fds_for(good());
    fds["kvm"] = must(fd::eventfd(0));
    const Manifest manifest = must(take_manifest(good(), fds));
    CHECK(fds.size() == 1); // what is no block's stays
    REQUIRE(manifest.blocks.size() == 2);
    REQUIRE(manifest.regions.size() == 2);
    CHECK(manifest.regions[0].gpa == 0);
    CHECK(manifest.regions[0].block == 1);
    CHECK(manifest.regions[0].offset == kBlock / 2);
    CHECK(manifest.regions[1].gpa == 0x100000);
    CHECK(manifest.machine.cmdline() == "quiet");
}

TEST_CASE("a manifest goes into a message and back") {
    NamedFds fds = fds_for(good());
    Manifest manifest = must(take_manifest(good(), fds));
    manifest.regions[0].read_only = true;
    const proto::Manifest message = to_message(manifest);
    NamedFds again;
    for (const auto& [name, fd] : fds_of(manifest))
        again[name] = must(fd::dup(fd));
    const Manifest back = must(take_manifest(message, again));
    CHECK(to_message(back).SerializeAsString() == message.SerializeAsString());
    CHECK(back.regions[0].read_only);
    CHECK_FALSE(back.regions[1].read_only);
}

TEST_CASE("a duplicate shows the same memory through fds of its own") {
    NamedFds fds = fds_for(good());
    const Manifest manifest = must(take_manifest(good(), fds));
    const Manifest copy = must(duplicate(manifest));
    CHECK(to_message(copy).SerializeAsString() == to_message(manifest).SerializeAsString());
    REQUIRE(copy.blocks[0].file.get() != manifest.blocks[0].file.get());
    REQUIRE(::pwrite(manifest.blocks[0].file.get(), "x", 1, 0) == 1);
    char byte = 0;
    REQUIRE(::pread(copy.blocks[0].file.get(), &byte, 1, 0) == 1);
    CHECK(byte == 'x');
}

TEST_CASE("a manifest without blocks or without regions is refused") {
    proto::Manifest message;
    CHECK(contains(refusal_of(message), "there is no RAM block"));
    add_block(message, "ram0");
    CHECK(contains(refusal_of(message), "no RAM block is shown anywhere"));
}

TEST_CASE("more blocks or regions than there may be are refused") {
    proto::Manifest message;
    for (size_t i = 0; i <= kMaxRamBlocks; ++i)
        add_block(message, "ram" + std::to_string(i));
    add_region(message, 0, kPage, "ram0");
    CHECK(contains(refusal_of(message), "33 RAM blocks are more than 32"));
    message = good();
    message.clear_regions();
    for (size_t i = 0; i <= kMaxRamRegions; ++i)
        add_region(message, i * kPage, kPage, "ram0");
    CHECK(contains(refusal_of(message), "65 regions are more than 64"));
    message.mutable_regions()->RemoveLast();
    NamedFds fds = fds_for(message);
    CHECK(take_manifest(message, fds));
}

TEST_CASE("a block's name is short and plain, and its own") {
    for (const std::string& name : {std::string(), std::string("RAM"), std::string("ram/0"),
             std::string("ram 0"), std::string("ram\n0"), std::string(33, 'r')}) {
        proto::Manifest message = good();
        message.mutable_blocks(0)->set_name(name);
        CHECK(contains(refusal_of(message), "name is not 1 to 32 of [a-z0-9-]"));
    }
    proto::Manifest message = good();
    message.mutable_blocks(1)->set_name("ram0");
    CHECK(contains(refusal_of(message), "ram0 is there twice"));
}

TEST_CASE("a block of a kind that this build does not know is refused") {
    for (const int kind : {0, 5, 4711}) {
        proto::Manifest message = good();
        message.mutable_blocks(0)->set_kind(static_cast<proto::RamKind>(kind));
        CHECK(contains(refusal_of(message), "of a kind that this build does not know"));
    }
}

TEST_CASE("a block of an impossible size is refused") {
    for (const uint64_t size : {uint64_t{0}, kBlock + 1, kMaxGuestPhysical + kPage, UINT64_MAX - kPage + 1}) {
        proto::Manifest message = good();
        message.mutable_blocks(0)->set_size(size);
        CHECK(contains(refusal_of(message), "impossible size"));
    }
}

TEST_CASE("a block of another size than said is refused") {
    proto::Manifest message = good();
    message.mutable_blocks(0)->set_size(kBlock * 2);
    CHECK(contains(refusal_of(message), "said to have 131072 bytes and has 65536"));
}

TEST_CASE("a block whose fd did not come is refused") {
    NamedFds fds = fds_for(good());
    fds.erase("ram1");
    CHECK(contains(refusal_of(good(), std::move(fds)), "'ram1' did not come"));
}

TEST_CASE("a block's fd without the seals is refused") {
    NamedFds fds = fds_for(good());
    UniqueFd loose = must(fd::memfd_create("loose", MFD_ALLOW_SEALING));
    REQUIRE(::ftruncate(loose.get(), kBlock) == 0);
    REQUIRE(::fcntl(loose.get(), F_ADD_SEALS, F_SEAL_GROW) == 0);
    fds["ram1"] = std::move(loose);
    CHECK(contains(refusal_of(good(), std::move(fds)), "ram1 is a memfd without the seals"));
}

TEST_CASE("a block's fd that is not on the file system it is said to be on is refused") {
    proto::Manifest message = good();
    message.mutable_blocks(0)->set_kind(proto::RAM_KIND_HUGETLBFS);
    CHECK(contains(refusal_of(message), "ram0 is said to be a file on hugetlbfs and is not"));
    message.mutable_blocks(0)->set_kind(proto::RAM_KIND_TMPFS);
    NamedFds fds = fds_for(message);
    fds["ram0"] = must(fd::open("/proc/self/status", O_RDONLY));
    CHECK(contains(refusal_of(message, std::move(fds)), "ram0 is said to be a file on tmpfs and is not"));
}

TEST_CASE("a region that is not made of whole pages is refused") {
    for (const auto& [gpa, size, offset] : std::vector<std::array<uint64_t, 3>>{
             {0x100001, kPage, 0}, {0x100000, kPage - 1, 0}, {0x100000, kPage, 1}, {0x100000, 0, 0}}) {
        proto::Manifest message = good();
        message.clear_regions();
        add_region(message, gpa, size, "ram0", offset);
        CHECK(contains(refusal_of(message), "not made of whole pages"));
    }
}

TEST_CASE("a region that reaches beyond its block is refused, however the sum overflows") {
    for (const auto& [size, offset] : std::vector<std::array<uint64_t, 2>>{{kBlock + kPage, 0},
             {kBlock, kPage}, {kPage, kBlock}, {kPage, kBlock + kPage}, {kBlock, UINT64_MAX - kPage + 1}}) {
        proto::Manifest message = good();
        message.clear_regions();
        add_region(message, 0, size, "ram0", offset);
        CHECK(contains(refusal_of(message), "beyond the end of RAM block ram0"));
    }
}

TEST_CASE("a region beyond guest physical memory is refused, however the sum overflows") {
    for (const uint64_t gpa : {kMaxGuestPhysical, kMaxGuestPhysical + kPage, UINT64_MAX - kPage + 1}) {
        proto::Manifest message = good();
        message.clear_regions();
        add_region(message, gpa, kPage, "ram0");
        CHECK(contains(refusal_of(message), "beyond the guest physical addresses"));
    }
}

TEST_CASE("regions that overlap are refused, in whatever order they come") {
    for (const uint64_t gpa :
        {uint64_t{0}, kPage, uint64_t{0x100000} - kPage, uint64_t{0x100000} + kBlock - kPage}) {
        proto::Manifest message = good();
        add_region(message, gpa, 2 * kPage, "ram0");
        CHECK(contains(refusal_of(message), "overlap"));
    }
    proto::Manifest message = good();
    add_region(message, 0x100000 + kBlock, kPage, "ram0"); // a neighbour does not overlap
    NamedFds fds = fds_for(message);
    CHECK(take_manifest(message, fds));
}

TEST_CASE("a region of a block that is not there is refused, and its name not repeated at length") {
    proto::Manifest message = good();
    message.mutable_regions(0)->set_block("ram9");
    CHECK(contains(refusal_of(message), "'ram9', which is not there"));
    message.mutable_regions(0)->set_block(std::string(100'000, 'r'));
    CHECK(contains(refusal_of(message), "which is not there"));
}

} // namespace liveupdate::handoff
