// A saved guest that a real NBD server has: what is asked of it is what is asked of a file.
#include <signal.h>

#include <fstream>

#include "handoff/save/nbd_uri.hpp"
#include "tests/support/nbd_server.hpp"
#include "tests/unit/handoff/save/fixture.hpp"

namespace liveupdate::handoff::save {
namespace {

using tests::NbdServer;
using tests::TemporaryFolder;

#define NEEDS_NBDKIT()                                                                                       \
    if (const std::string why = NbdServer::why_none(); !why.empty()) {                                       \
        std::printf("SKIPPED: %s\n", why.c_str());                                                           \
        return;                                                                                              \
    }

void check_says(const Error& error, const char* words) {
    CHECK_MESSAGE(error.message.find(words) != std::string::npos, error.message);
}

// What reading all of it comes to.
Error failure(const std::string& uri, const SmallGuest& guest, IoOptions options = {}) {
    const auto read = read_and_compare(uri, guest, options);
    REQUIRE_FALSE(read);
    return read.error();
}

TEST_CASE("a saved guest is read from an NBD server, by a unix socket and by TCP") {
    NEEDS_NBDKIT();
    const SmallGuest guest;
    const TemporaryFolder folder;
    const std::string path = guest.save(folder.at(""));
    for (const std::string& socket : {folder.at("nbd.sock"), std::string()}) {
        const NbdServer server(socket, "dir=" + folder.at(""));
        REQUIRE(server.up());
        for (const unsigned threads : {1u, 3u, 16u}) {
            IoOptions options;
            options.threads = threads;
            options.depth = 2;
            CHECK(must(read_and_compare(server.uri(), guest, options)));
        }
    }
}

TEST_CASE("a server whose connections may see different things gets one, which threads share") {
    NEEDS_NBDKIT();
    const SmallGuest guest;
    const TemporaryFolder folder;
    const std::string path = guest.save(folder.at(""));
    // Refuses a second client while there is one.
    const NbdServer server(folder.at("nbd.sock"), path,
        {"--filter=multi-conn", "--filter=limit", "multi-conn-mode=disable", "limit=1"});
    REQUIRE(server.up());
    IoOptions options;
    options.threads = 8;
    CHECK(must(read_and_compare(server.uri(), guest, options)));
}

TEST_CASE("a reader that has let go is in nobody's way at a server of one client at a time") {
    NEEDS_NBDKIT();
    const SmallGuest guest;
    const TemporaryFolder folder;
    const std::string path = guest.save(folder.at(""));
    const NbdServer server(folder.at("nbd.sock"), path,
        {"--filter=multi-conn", "--filter=limit", "multi-conn-mode=disable", "limit=1"});
    REQUIRE(server.up());
    const auto first = must(Reader::open(server.uri()));
    CHECK_FALSE(Reader::open(server.uri()));
    first->close_idle();
    // The server hears of it in its own time.
    const auto in_time = [](const auto& step) {
        for (const Deadline limit = patience(); !limit.passed(); ::usleep(5000))
            if (step()) return true;
        return false;
    };
    CHECK(in_time([&] { return Reader::open(server.uri()).has_value(); }));
    CHECK(in_time([&] { return first->load_tables().has_value(); }));
    const Memory ram0(guest.blocks[0].size);
    must(first->read_block(0, ram0.bytes()));
    CHECK(ram0 == guest.ram0);
}

TEST_CASE("what an NBD server has is checked as a file is") {
    NEEDS_NBDKIT();
    const SmallGuest guest;
    const TemporaryFolder folder;
    const std::string path = guest.save(folder.at(""));
    const std::string whole = must(fd::read_file(path));
    const NbdServer server(folder.at("nbd.sock"), "dir=" + folder.at(""));
    REQUIRE(server.up());
    const auto with = [&](const std::string& bytes) {
        std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
        return failure(server.uri(), guest);
    };
    const auto flipped = [&](uint64_t at) {
        std::string bytes = whole;
        bytes[at] = static_cast<char>(bytes[at] ^ 1);
        return bytes;
    };
    const Layout layout = Layout::of(guest.blocks);
    const auto same = [&](const std::string& bytes) {
        const Error by_nbd = with(bytes), by_file = failure(path, guest);
        CHECK(by_nbd.code == by_file.code);
        std::string expected = by_file.message;
        for (size_t at = 0; (at = expected.find(path, at)) != std::string::npos; at += server.uri().size())
            expected.replace(at, path.size(), server.uri());
        CHECK(by_nbd.message == expected);
        return by_nbd;
    };
    check_says(same(flipped(layout.blocks[0].pages_at + 7 * kPage + 3)), "RAM block ram0, chunk 0");
    check_says(same(flipped(layout.blocks[0].bitmap_at)), "the bitmap or the sums");
    check_says(same(flipped(layout.state_at)), "the state");
    check_says(same(flipped(200)), "header");
    check_says(same(flipped(8)), "version"); // of another version
    check_says(same(whole.substr(0, whole.size() - kPage)), "cut");
    same(whole + std::string(kPage, '\0'));
    check_says(same(std::string(whole.size(), 'x')), "no file of a saved guest");
    check_says(same("short"), "no file of a saved guest");
}

// nbdkit 1.32 ends of a reply to a connection that was closed.
TEST_CASE("a server is left as it was when what it has is refused in the middle") {
    NEEDS_NBDKIT();
    const std::vector<BlockSpec> blocks = {{"ram0", 64 * kMib, Place::kHere}};
    const Memory ram(blocks[0].size);
    for (uint64_t page = 0; page < pages_in(blocks[0].size); ++page)
        ram.fill(page);
    const TemporaryFolder folder;
    const auto writer = must(Writer::create(folder.at(""), blocks));
    must(writer->write_pages(0, ram.bytes(), all_pages(blocks[0].size)));
    must(writer->finish(sample_guest(blocks).SerializeAsString()));
    must(writer->publish());
    {
        std::fstream file(writer->path(), std::ios::binary | std::ios::in | std::ios::out);
        file.seekp(static_cast<std::streamoff>(Layout::of(blocks).blocks[0].pages_at + 5 * kMib));
        file.write("damaged", 7);
    }
    const NbdServer server(folder.at("nbd.sock"), writer->path());
    REQUIRE(server.up());
    const Memory into(blocks[0].size);
    for (int round = 0; round < 20; ++round) {
        auto reader = must(Reader::open(server.uri()));
        must(reader->load_tables());
        check_says(reader->read_block(0, into.bytes()).error(), "chunk 5");
    }
}

TEST_CASE("what stands in the way of reading from an NBD server is said") {
    NEEDS_NBDKIT();
    const SmallGuest guest;
    const TemporaryFolder folder;
    const std::string path = guest.save(folder.at(""));
    NbdServer server(folder.at("nbd.sock"), "dir=" + folder.at(""));
    REQUIRE(server.up());
    check_says(failure(server.uri("nothing"), guest), "no export named 'nothing'");
    CHECK(failure(server.uri("nothing"), guest).code == ErrorCode::kNotFound);
    check_says(failure("nbd+unix:///x?socket=" + folder.at("none.sock"), guest), "No such file or directory");
    server.kill();
    check_says(failure(server.uri(), guest), "Connection refused");
    CHECK(failure("nbd+unix:///x?socket=relative", guest).code == ErrorCode::kInvalid);
    CHECK(failure("nbd:///x", guest).code == ErrorCode::kInvalid);
    check_says(failure("nbds://host/x", guest), "TLS is not supported");
    CHECK_FALSE(is_nbd_uri("/srv/nbd://x"));
    CHECK_FALSE(is_nbd_uri("nbd"));
    CHECK(is_nbd_uri("nbd+vsock:///x"));
}

TEST_CASE("reads that fail at the server are told of, and a silent server is given up") {
    NEEDS_NBDKIT();
    const SmallGuest guest;
    const TemporaryFolder folder;
    const std::string path = guest.save(folder.at(""));
    {
        const NbdServer server(
            folder.at("nbd.sock"), path, {"--filter=error", "error-pread=EIO", "error-pread-rate=100%"});
        REQUIRE(server.up());
        const Error error = failure(server.uri(), guest);
        CHECK(error.code == ErrorCode::kSystem);
        check_says(error, "at 0: Input/output error");
    }
    IoOptions options;
    options.silence = std::chrono::milliseconds(200);
    const NbdServer server(folder.at("nbd.sock"), path);
    REQUIRE(server.up());
    auto reader = must(Reader::open(server.uri(), options));
    server.signal(SIGSTOP);
    const auto read = reader->load_tables();
    REQUIRE_FALSE(read);
    check_says(read.error(), "has said nothing for 200 ms");
    server.signal(SIGCONT);
    must(reader->load_tables()); // over another connection
}

TEST_CASE("a server that comes back is read on from, unless it has another file by then") {
    NEEDS_NBDKIT();
    const SmallGuest guest;
    const TemporaryFolder folder;
    const std::string path = guest.save(folder.at(""));
    const std::string socket = folder.at("nbd.sock");
    auto server = std::make_unique<NbdServer>(socket, path);
    auto reader = must(Reader::open(server->uri()));
    must(reader->load_tables());
    const Memory into(kMib);
    server->kill();
    CHECK(reader->read_chunk(0, 0, into.bytes()).error().code == ErrorCode::kSystem);
    CHECK(reader->read_chunk(0, 0, into.bytes()).error().code == ErrorCode::kPeerGone);
    server = std::make_unique<NbdServer>(socket, path);
    REQUIRE(server->up());
    must(reader->read_chunk(0, 0, into.bytes()));
    CHECK(std::memcmp(into.page(7), guest.ram0.page(7), kPage) == 0);
    server->kill();
    std::ofstream(folder.at("other")) << std::string(kMib, 'x');
    server = std::make_unique<NbdServer>(socket, folder.at("other"));
    REQUIRE(server->up());
    CHECK_FALSE(reader->read_chunk(0, 0, into.bytes())); // over the former connection
    check_says(reader->read_chunk(0, 0, into.bytes()).error(), "let the server give out the same file again");
}

TEST_CASE("reading from a server is given up when somebody asks for that") {
    NEEDS_NBDKIT();
    const SmallGuest guest;
    const TemporaryFolder folder;
    const std::string path = guest.save(folder.at(""));
    const NbdServer server(folder.at("nbd.sock"), path);
    REQUIRE(server.up());
    const UniqueFd cancel = must(fd::eventfd(0));
    IoOptions options;
    options.cancel_fd = cancel.get();
    auto reader = must(Reader::open(server.uri(), options));
    server.signal(SIGSTOP);
    const uint64_t one = 1;
    must(fd::write_all(cancel.get(), &one, sizeof(one)));
    CHECK(reader->load_tables().error().code == ErrorCode::kAborted);
}

} // namespace
} // namespace liveupdate::handoff::save
