#include "handoff/save/writer.hpp"

#include <sys/resource.h>
#include <sys/stat.h>

#include <fstream>
#include <functional>
#include <thread>

#include "tests/unit/handoff/save/fixture.hpp"

namespace liveupdate::handoff::save {
namespace {

namespace fs = std::filesystem;

uint64_t blocks_of(const std::string& path) {
    struct stat status {};
    REQUIRE(::stat(path.c_str(), &status) == 0);
    return static_cast<uint64_t>(status.st_blocks) * 512;
}

std::string content_of(const std::string& path) {
    return must(fd::read_file(path));
}

} // namespace

TEST_CASE("a guest comes back from its file, whichever way it is written and read") {
    const tests::TemporaryFolder folder;
    const SmallGuest guest;
    for (const Engine writing : {Engine::kRing, Engine::kCalls})
        for (const Engine reading : {Engine::kRing, Engine::kCalls})
            for (const unsigned threads : {1u, 3u}) {
                const std::string path = guest.save(folder.at(""), {threads, 4, writing});
                // A chunk in flight, all of them: buffers are used again, or not.
                for (const unsigned depth : {1u, 2u, 4u})
                    CHECK(must(read_and_compare(path, guest, {threads, depth, reading})));
                CHECK(must(read_and_compare(path, guest, {threads, 2, reading}, RamKind::kHugetlbfs)));
            }
}

TEST_CASE("RAM that is written to a file takes nothing that is damaged, and no more space than its pages") {
    const tests::TemporaryFolder folder;
    const SmallGuest guest;
    const std::string path = guest.save(folder.at(""));
    const auto reader = must(Reader::open(path));
    must(reader->load_tables());
    const UniqueFd ram = must(create_sealed_memfd("ram", guest.blocks[0].size));
    must(reader->read_block(0, ram.get(), RamKind::kMemfd));
    struct stat status {};
    REQUIRE(::fstat(ram.get(), &status) == 0);
    CHECK(static_cast<uint64_t>(status.st_blocks) * 512 == 8 * kPage);

    const Layout layout = Layout::of(guest.blocks);
    const UniqueFd file = must(fd::open(path, O_WRONLY));
    must(fd::pwrite_all(file.get(), "damage", 6, layout.blocks[0].pages_at + 300 * kPage));
    const UniqueFd other = must(create_sealed_memfd("ram", guest.blocks[0].size));
    CHECK_MESSAGE(reader->read_block(0, other.get(), RamKind::kMemfd).error().message.find("chunk 1") !=
                      std::string::npos,
        "the damaged chunk is not named");
    CHECK(data_ranges(other.get(), kMib, kMib).empty());
}

TEST_CASE("RAM whose file takes no writes ends the reading with its reason") {
    const tests::TemporaryFolder folder;
    const SmallGuest guest;
    const auto reader = must(Reader::open(guest.save(folder.at(""))));
    must(reader->load_tables());
    const UniqueFd ram = must(create_sealed_memfd("ram", guest.blocks[0].size));
    const UniqueFd read_only = must(fd::open("/proc/self/fd/" + std::to_string(ram.get()), O_RDONLY));
    const auto read = reader->read_block(0, read_only.get(), RamKind::kMemfd);
    REQUIRE_FALSE(read);
    CHECK(read.error().system_errno == EBADF);
    CHECK(read.error().message.find("RAM block ram0") != std::string::npos);
}

TEST_CASE("zero pages are holes, and the file is as large as the format says") {
    const tests::TemporaryFolder folder;
    const SmallGuest guest;
    const std::string path = guest.save(folder.at(""));
    // 8 pages, bitmap and sums of two blocks, state, header.
    const uint64_t used = (8 + 4 + 1 + 1) * kPage;
    CHECK(blocks_of(path) >= used);
    CHECK(blocks_of(path) <= used + 16 * kPage); // the file system's own
    CHECK(fs::file_size(path) == kMib + 3 * kMib + kMib + kPage);
    CHECK((fs::status(path).permissions() & fs::perms(077)) == fs::perms::none);
}

TEST_CASE("pages that change between two passes are in the file as they were last") {
    const tests::TemporaryFolder folder;
    const SmallGuest guest;
    auto writer = must(Writer::create(folder.at(""), guest.blocks));
    must(writer->write_pages(0, guest.ram0.bytes(), all_pages(guest.blocks[0].size)));
    must(writer->write_pages(1, guest.ram1.bytes(), all_pages(guest.blocks[1].size)));
    PageMap dirty(pages_in(guest.blocks[0].size));
    for (const uint64_t page : {1, 3, 256, 400}) {
        guest.ram0.fill(page, 99);
        dirty.set(page);
    }
    std::memset(guest.ram0.page(7), 0, kPage); // written before, a hole now
    dirty.set(7);
    must(writer->write_pages(0, guest.ram0.bytes(), dirty));
    CHECK(writer->pages_in_file() == 9);
    CHECK(writer->bytes_written() == (8 + 4) * kPage);
    must(writer->finish(sample_guest(guest.blocks).SerializeAsString()));
    must(writer->publish());
    CHECK(must(read_and_compare(writer->path(), guest)));
    std::ifstream file(writer->path(), std::ios::binary);
    file.seekg(static_cast<std::streamoff>(kMib + 7 * kPage));
    std::string page(kPage, 'x');
    file.read(page.data(), kPage);
    CHECK(page == std::string(kPage, '\0'));
}

TEST_CASE(
    "RAM that changes unseen in a chunk of which another page is written does not make the save unreadable") {
    const tests::TemporaryFolder folder;
    const SmallGuest guest;
    auto writer = must(Writer::create(folder.at(""), guest.blocks));
    must(writer->write_pages(0, guest.ram0.bytes(), all_pages(guest.blocks[0].size)));
    must(writer->write_pages(1, guest.ram1.bytes(), all_pages(guest.blocks[1].size)));
    guest.ram0.fill(2, 99); // as a disk's read does that nobody has been told of yet
    guest.ram0.fill(1, 99);
    PageMap dirty(pages_in(guest.blocks[0].size));
    dirty.set(1);
    must(writer->write_pages(0, guest.ram0.bytes(), dirty));
    guest.ram0.fill(2); // as it was
    must(writer->finish(sample_guest(guest.blocks).SerializeAsString()));
    must(writer->publish());
    CHECK(must(read_and_compare(writer->path(), guest)));
}

TEST_CASE("RAM that changes at any moment while it is written has the right sums") {
    const tests::TemporaryFolder folder;
    const SmallGuest guest;
    const std::jthread device([&](const std::stop_token& stop) {
        std::mt19937 random(1);
        for (uint64_t salt = 2; !stop.stop_requested(); ++salt) {
            guest.ram0.fill(300, salt);
            std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
        }
    });
    for (int i = 0; i < 150; ++i) {
        const auto reader = must(
            Reader::open(guest.save(folder.at(""), {1, 4, i % 2 == 0 ? Engine::kCalls : Engine::kRing})));
        must(reader->load_tables());
        must(reader->check_block(0));
    }
}

TEST_CASE("a block beside has no pages in the file") {
    const tests::TemporaryFolder folder;
    const std::vector<BlockSpec> blocks = {{"ram0", 64 * kMib, Place::kBeside}};
    auto writer = must(Writer::create(folder.at(""), blocks));
    must(writer->finish(sample_guest(blocks).SerializeAsString()));
    must(writer->publish());
    CHECK(fs::file_size(writer->path()) == kMib + kPage);
    auto reader = must(Reader::open(writer->path()));
    must(reader->load_tables());
    CHECK(reader->header().specs() == blocks);
}

TEST_CASE("a writer that ends before it has published leaves the former file and nothing else") {
    const tests::TemporaryFolder folder;
    const SmallGuest guest;
    const std::string path = guest.save(folder.at(""));
    const std::string before = content_of(path);
    {
        auto writer = must(Writer::create(folder.at(""), guest.blocks));
        must(writer->write_pages(0, guest.ram0.bytes(), all_pages(guest.blocks[0].size)));
    }
    CHECK(content_of(path) == before);
    CHECK_FALSE(fs::exists(folder.at(std::string(kNewFileName))));
}

TEST_CASE("a writer that is killed leaves the former file whole, and the next one writes anew") {
    const tests::TemporaryFolder folder;
    const SmallGuest guest;
    const std::string path = guest.save(folder.at(""));
    const std::string before = content_of(path);
    Child child([&] {
        auto writer = Writer::create(folder.at(""), guest.blocks);
        if (!writer) return 1;
        guest.ram0.fill(9);
        if (!(*writer)->write_pages(0, guest.ram0.bytes(), all_pages(guest.blocks[0].size))) return 2;
        ::kill(::getpid(), SIGKILL);
        return 3;
    });
    CHECK(child.wait() == -1);
    CHECK(content_of(path) == before);
    CHECK(fs::exists(folder.at(std::string(kNewFileName))));
    CHECK_FALSE(Reader::open(folder.at(std::string(kNewFileName))));
    guest.save(folder.at(""));
    CHECK(must(read_and_compare(path, guest)));
    CHECK_FALSE(fs::exists(folder.at(std::string(kNewFileName))));
}

TEST_CASE("two writers do not meet in one folder") {
    const tests::TemporaryFolder folder;
    const SmallGuest guest;
    const auto first = must(Writer::create(folder.at(""), guest.blocks));
    const auto second = Writer::create(folder.at(""), guest.blocks);
    REQUIRE_FALSE(second);
    CHECK(second.error().code == ErrorCode::kBusy);
}

TEST_CASE("a file that cannot grow ends the write with its reason") {
    const tests::TemporaryFolder folder;
    const SmallGuest guest;
    // In a child: the limit holds for all that the process writes.
    Child child([&] {
        ::signal(SIGXFSZ, SIG_IGN);
        auto writer = Writer::create(folder.at(""), guest.blocks);
        if (!writer) return 1;
        const rlimit limit{kMib + 3 * kPage, kMib + 3 * kPage};
        ::setrlimit(RLIMIT_FSIZE, &limit);
        const auto written = (*writer)->write_pages(0, guest.ram0.bytes(), all_pages(guest.blocks[0].size));
        if (written) return 2;
        return written.error().code == ErrorCode::kSystem && written.error().system_errno == EFBIG ? 0 : 3;
    });
    CHECK(child.wait() == 0);
    CHECK_FALSE(fs::exists(folder.at(std::string(kFileName))));
}

TEST_CASE("a folder, a pipe, nothing and an empty file are no saved guests") {
    const tests::TemporaryFolder folder;
    CHECK_FALSE(Reader::open(folder.at("")));
    CHECK_FALSE(Reader::open(folder.at("nothing")));
    REQUIRE(::mkfifo(folder.at("pipe").c_str(), 0600) == 0);
    CHECK_FALSE(Reader::open(folder.at("pipe")));
    std::ofstream(folder.at("empty"));
    const auto empty = Reader::open(folder.at("empty"));
    REQUIRE_FALSE(empty);
    CHECK(contains(empty.error().message, folder.at("empty")));
}

TEST_CASE("a state that this build does not understand is refused") {
    const std::vector<BlockSpec> blocks = {{"ram0", kMib, Place::kHere}};
    const auto refusal = [&](const std::function<void(proto::SavedGuest&)>& change) {
        proto::SavedGuest guest = sample_guest(blocks);
        change(guest);
        const auto parsed = parse_saved_guest(guest.SerializeAsString());
        return parsed ? std::string() : parsed.error().message;
    };
    CHECK(refusal([](auto&) {}).empty());
    const auto add_unknown = [](google::protobuf::Message& message) {
        message.GetReflection()->MutableUnknownFields(&message)->AddVarint(1000, 1);
    };
    CHECK(contains(refusal([&](auto& g) { add_unknown(g); }), "does not know"));
    CHECK(contains(
        refusal([&](auto& g) { add_unknown(*g.mutable_manifest()->mutable_machine()); }), "does not know"));
    CHECK(contains(
        refusal([&](auto& g) { add_unknown(*g.mutable_sections(1)->mutable_section()); }), "does not know"));
    CHECK(refusal([&](auto& g) { add_unknown(*g.mutable_source()); }).empty()); // what a later build can do
    CHECK(contains(refusal([](auto& g) { g.clear_clocks(); }), "clocks"));
    CHECK(contains(refusal([](auto& g) { g.clear_sections(); }), "0 sections"));
    CHECK(contains(
        refusal([](auto& g) { g.mutable_sections(0)->mutable_section()->set_capacity(99); }), "more bytes"));
    CHECK(contains(refusal([](auto& g) { g.clear_vm(); }), "name"));
    CHECK(contains(refusal([](auto& g) { g.set_epoch(UINT32_MAX); }), "epoch"));
    CHECK(contains(parse_saved_guest("\x08").error().message, "cannot be read"));
}

TEST_CASE("a guest of QEMU has its stream, or the file beside with its checksums, in place of sections") {
    proto::SavedGuest guest = sample_guest({{"ram0", kMib, Place::kHere}});
    guest.clear_sections();
    guest.clear_fixed_state();
    CHECK_FALSE(parse_saved_guest(guest.SerializeAsString()));
    proto::SavedQemu& qemu = *guest.mutable_qemu();
    qemu.set_version("7.2.22");
    qemu.set_machine("pc-q35-7.2");
    qemu.add_arguments("-nodefaults");
    CHECK_FALSE(parse_saved_guest(guest.SerializeAsString()));
    proto::SavedGuest beside = guest;
    beside.mutable_qemu()->add_image_sums(1);
    CHECK(parse_saved_guest(beside.SerializeAsString()));
    qemu.set_stream("stream");
    CHECK(parse_saved_guest(guest.SerializeAsString()));
    const auto refuse = [&](const std::function<void(proto::SavedGuest&)>& change) {
        proto::SavedGuest other = guest;
        change(other);
        CHECK_FALSE(parse_saved_guest(other.SerializeAsString()));
    };
    refuse([](auto& g) { g.mutable_qemu()->clear_version(); });
    refuse([](auto& g) { g.mutable_qemu()->clear_machine(); });
    refuse([](auto& g) { g.mutable_qemu()->clear_arguments(); });
    refuse([](auto& g) { g.set_fixed_state("fixed"); });
    refuse([](auto& g) { *g.add_sections() = sample_guest({}).sections(0); });
}

TEST_CASE("the state's RAM must be that of the file") {
    const std::vector<BlockSpec> blocks = {{"ram0", kMib, Place::kHere}, {"ram1", kMib, Place::kHere}};
    const auto manifest = sample_guest(blocks).manifest();
    CHECK(check_blocks_against(manifest, blocks));
    CHECK_FALSE(check_blocks_against(manifest, {blocks[0]}));
    CHECK_FALSE(check_blocks_against(manifest, {blocks[0], {"ram1", 2 * kMib, Place::kHere}}));
    CHECK_FALSE(check_blocks_against(manifest, {blocks[0], blocks[1], {"ram2", kMib, Place::kHere}}));
}

} // namespace liveupdate::handoff::save
