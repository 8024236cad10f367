#include "handoff/session.hpp"

#include <doctest/doctest.h>
#include <sys/socket.h>

#include <random>

#include "handoff/base/fd.hpp"
#include "handoff/negotiation.hpp"
#include "tests/unit/handoff/session_driver.hpp"
#include "tests/unit/handoff/support.hpp"

namespace liveupdate::handoff {
namespace {

using proto::Message;

void send_bytes(SessionDriver& driver, const std::string& bytes) {
    REQUIRE(::send(driver.channel().fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
            static_cast<ssize_t>(bytes.size()));
}

// A destination that has been prepared as participant 2, the guest being owned by 1.
struct PreparedDestination {
    PreparedDestination() : transfer(must(TransferArea::create(sections))) {
        REQUIRE(files.baton.claim(1));
        driver.greet();
        const Message answer = driver.ask(message(), files.fds_with(transfer));
        REQUIRE_MESSAGE(answer.has_prepared(), answer.failure().message());
    }
    Message message() const {
        Message prepare;
        *prepare.mutable_prepare()->mutable_manifest() = files.manifest();
        prepare.mutable_prepare()->set_participant(2);
        prepare.mutable_prepare()->set_source_participant(1);
        add_sections(sections, prepare.mutable_prepare()->mutable_sections());
        return prepare;
    }
    std::vector<SectionInfo> sections = {{"counter", 0, 1, 64}, {"name", 0, 1, 64}};
    GuestFilesForTest files;
    UniqueFd transfer;
    SessionDriver driver;
};

} // namespace

TEST_CASE("a VMM answers Hello with its offer, and with its participant once it has a guest") {
    const GuestFilesForTest files;
    SessionDriver driver;
    const proto::Offer before = driver.greet();
    CHECK(before.implementation() == "scripted-vmm");
    CHECK(before.oldest_protocol() == kOldestProtocol);
    CHECK(before.newest_protocol() == kNewestProtocol);
    CHECK(before.pid() == static_cast<uint32_t>(::getpid()));
    CHECK(before.participant() == 0);
    driver.launch(files, 7);
    CHECK(driver.greet().participant() == 7);
    CHECK(files.baton.held_by(7));
}

TEST_CASE("nothing is done for a supervisor that has not said Hello") {
    const GuestFilesForTest files;
    SessionDriver driver;
    driver.connect();
    CHECK(contains(driver.refusal_of(launch_message(files, 1), files.fds()), "Hello"));
    CHECK(files.baton.read().state == BatonState::kFree);
    driver.launch(files, 1);
    driver.connect(); // a new session begins with a new Hello
    Message query;
    query.mutable_query();
    CHECK(contains(driver.refusal_of(query), "Hello"));
    driver.greet();
    CHECK(driver.ask(query).has_status());
}

TEST_CASE("a supervisor of another protocol is refused with both ranges, and may try again") {
    SessionDriver driver;
    driver.connect();
    Message hello;
    hello.mutable_hello()->set_oldest_protocol(kNewestProtocol + 1);
    hello.mutable_hello()->set_newest_protocol(kNewestProtocol + 4);
    CHECK(contains(driver.refusal_of(hello), "no protocol version in common"));
    driver.greet();
}

TEST_CASE("a VMM without a guest refuses every message that needs one") {
    SessionDriver driver;
    driver.greet();
    size_t refused = 0;
    for (const Message& message : one_of_each_kind()) {
        if (message.has_stop() || message.has_abandon()) continue; // these end it
        INFO(kind_of(message));
        driver.refusal_of(message);
        ++refused;
    }
    CHECK(refused == one_of_each_kind().size() - 2);
    CHECK(contains(driver.refusal_of(Message()), "empty or unknown message"));
    driver.greet();
}

TEST_CASE("a VMM with a guest answers what is for a source and refuses all else, and the guest stays") {
    const GuestFilesForTest files;
    SessionDriver driver;
    driver.launch(files, 1);
    size_t refused = 0;
    for (const Message& message : one_of_each_kind()) {
        if (message.has_stop()) continue;
        INFO(kind_of(message));
        const Message answer = driver.ask(message);
        if (message.has_describe())
            CHECK(answer.has_description());
        else if (message.has_query())
            CHECK(answer.has_status());
        else if (message.has_adopt())
            CHECK(answer.has_adopted());
        else if (message.has_abandon())
            CHECK(answer.has_abandoned());
        else if (message.has_ask_to_end())
            CHECK(answer.has_asked_to_end());
        else {
            CHECK_MESSAGE(answer.has_failure(), kind_of(answer));
            ++refused;
        }
        CHECK(files.baton.held_by(1));
    }
    CHECK(refused == one_of_each_kind().size() - 6);
    CHECK(driver.script().saves == 0);
    CHECK(driver.greet().participant() == 1);
}

TEST_CASE("a destination refuses what is not for a destination, and stays prepared") {
    PreparedDestination prepared;
    SessionDriver& driver = prepared.driver;
    driver.script().fail_rehearse = true;
    size_t refused = 0;
    for (const Message& message : one_of_each_kind()) {
        if (message.has_stop() || message.has_abandon() || message.has_arm()) continue;
        INFO(kind_of(message));
        driver.refusal_of(message);
        ++refused;
    }
    CHECK(refused == one_of_each_kind().size() - 3);
    CHECK(contains(driver.refusal_of(prepared.message(), prepared.files.fds_with(prepared.transfer)),
        "a guest already"));
    CHECK(driver.greet().participant() == 0);
    CHECK(prepared.files.baton.held_by(1));
}

TEST_CASE(
    "a destination that is armed for a time that has passed tells that nothing was switched, and ends") {
    PreparedDestination prepared;
    Message arm;
    arm.mutable_arm()->set_deadline_ns(monotonic_ns());
    CHECK(prepared.driver.ask(arm).has_armed());
    const Message switched = prepared.driver.receive();
    REQUIRE(switched.has_switched());
    CHECK_FALSE(switched.switched().committed());
    CHECK_FALSE(switched.switched().reason().empty());
    CHECK(prepared.driver.exit_status() == 0);
    CHECK(prepared.files.baton.held_by(1));
}

TEST_CASE("a destination does not arm itself for ever") {
    PreparedDestination prepared;
    for (const uint64_t ns :
        {UINT64_MAX, static_cast<uint64_t>(INT64_MAX), Deadline::after(std::chrono::hours(24)).ns()}) {
        Message arm;
        arm.mutable_arm()->set_deadline_ns(ns);
        CHECK(contains(prepared.driver.refusal_of(arm), "too far"));
    }
}

TEST_CASE("a destination under the number of the guest's owner is refused") {
    GuestFilesForTest files;
    REQUIRE(files.baton.claim(1));
    SessionDriver driver;
    driver.greet();
    const std::vector<SectionInfo> sections = {{"counter", 0, 1, 64}, {"name", 0, 1, 64}};
    const UniqueFd transfer = must(TransferArea::create(sections));
    Message prepare;
    *prepare.mutable_prepare()->mutable_manifest() = files.manifest();
    prepare.mutable_prepare()->set_participant(1);
    add_sections(sections, prepare.mutable_prepare()->mutable_sections());
    CHECK(contains(driver.refusal_of(prepare, files.fds_with(transfer)), "participant 1"));
    CHECK(files.baton.held_by(1));
}

TEST_CASE("a destination that cannot be prepared says why and can be asked again") {
    PreparedDestination other; // only for its message
    SessionDriver driver;
    driver.greet();
    const auto fds = other.files.fds_with(other.transfer);
    driver.script().fail_prepare = true;
    CHECK(contains(driver.refusal_of(other.message(), fds), "no room for this guest"));
    driver.script().fail_prepare = false;
    CHECK(contains(driver.refusal_of(other.message(), other.files.fds()), "'transfer' did not come"));
    Message lies = other.message();
    lies.mutable_prepare()->mutable_sections(0)->set_capacity(100'000);
    CHECK(contains(driver.refusal_of(lies, fds), "its sections need"));
    lies = other.message();
    lies.mutable_prepare()->mutable_manifest()->mutable_blocks(0)->set_size(4096);
    CHECK(contains(driver.refusal_of(lies, fds), "said to have 4096 bytes"));
    CHECK(driver.ask(other.message(), fds).has_prepared());
}

TEST_CASE("a launch that cannot be is refused with the reason, and a better one succeeds") {
    const GuestFilesForTest files;
    SessionDriver driver;
    driver.greet();
    CHECK(contains(driver.refusal_of(launch_message(files, 0), files.fds()), "no participant 0"));
    Message beyond = launch_message(files, 1);
    beyond.mutable_launch()->set_participant(kMaxParticipant + 1u);
    CHECK(contains(driver.refusal_of(beyond, files.fds()), "no participant 16384"));
    CHECK(contains(driver.refusal_of(launch_message(files, 1)), "'baton' did not come"));
    CHECK(contains(
        driver.refusal_of(launch_message(files, 1), {{"baton", files.ram.get()}}), "baton segment has"));
    Message empty;
    empty.mutable_launch()->set_participant(1);
    CHECK(contains(driver.refusal_of(empty, files.fds()), "there is no RAM block"));
    CHECK(files.baton.read().state == BatonState::kFree);
    driver.script().fail_launch = true;
    CHECK(contains(driver.refusal_of(launch_message(files, 1), files.fds()), "no room for guests"));
    driver.script().fail_launch = false;
    driver.launch(files, 1);
    CHECK(contains(driver.refusal_of(launch_message(files, 1), files.fds()), "a guest already"));
}

TEST_CASE("a guest that has an owner is not launched a second time") {
    const GuestFilesForTest files;
    SessionDriver owner;
    owner.launch(files, 1);
    SessionDriver other;
    other.greet();
    CHECK(contains(other.refusal_of(launch_message(files, 2), files.fds()), "held by 1"));
    CHECK(files.baton.held_by(1));
}

TEST_CASE("packets that are no messages are answered with a failure, and nothing leaks") {
    const GuestFilesForTest files;
    SessionDriver driver;
    driver.launch(files, 1);
    const size_t before = open_fds();
    std::mt19937 random(1);
    for (int round = 0; round < 300; ++round) {
        std::string noise(1 + random() % 3000, '\0');
        for (char& c : noise)
            c = static_cast<char>(random());
        noise[0] = '\xff'; // a field number that cannot be
        send_bytes(driver, noise);
        REQUIRE(driver.receive().has_failure());
    }
    send_bytes(driver, std::string(Channel::kMaxPacket + 1, 'x'));
    CHECK(contains(driver.receive().failure().message(), "128 KiB"));
    Message misnamed;
    misnamed.mutable_query();
    misnamed.add_fd_names("nothing");
    CHECK(contains(driver.refusal_of(misnamed, files.fds()), "names 3 file descriptors and carries 2"));
    CHECK(contains(driver.refusal_of(Message(), {{"a", files.ram.get()}, {"a", files.ram.get()}}),
        "two file descriptors"));
    CHECK(open_fds() == before);
    CHECK(driver.greet().participant() == 1);
}

TEST_CASE("a failure's words are short and printable, whatever the message said") {
    const GuestFilesForTest files;
    SessionDriver driver;
    driver.greet();
    Message launch = launch_message(files, 1);
    launch.mutable_launch()->mutable_manifest()->mutable_regions(0)->set_block(std::string(120'000, '\n'));
    const std::string words = driver.refusal_of(launch, files.fds());
    CHECK(words.size() < 5000);
    CHECK(words.find('\n') == std::string::npos);
}

TEST_CASE("a VMM that has no guest ends with its supervisor") {
    SessionDriver driver;
    driver.greet();
    driver.disconnect();
    CHECK(driver.exit_status() == 0);
}

TEST_CASE("a destination ends with its supervisor, and the guest stays where it is") {
    PreparedDestination prepared;
    prepared.driver.disconnect();
    CHECK(prepared.driver.exit_status() == 0);
    CHECK(prepared.files.baton.held_by(1));
}

TEST_CASE("a VMM that has a guest keeps it without a supervisor, and the next one adopts it") {
    const GuestFilesForTest files;
    SessionDriver driver;
    driver.launch(files, 3);
    driver.disconnect();
    REQUIRE(comes_true([&] { return driver.script().updates_over > 0; }));
    CHECK(driver.greet().participant() == 3);
    Message adopt;
    adopt.mutable_adopt();
    driver.send(adopt);
    Received adopted = must(driver.channel().receive(patience()));
    REQUIRE(adopted.message.has_adopted());
    CHECK(adopted.message.adopted().participant() == 3);
    CHECK(must(take_manifest(adopted.message.adopted().manifest(), adopted.fds)).blocks.size() == 1);
    CHECK(must(Baton::map(must(take_fd(adopted.fds, "baton")).get())).held_by(3));
    CHECK(adopted.fds.contains("doorbell"));
}

TEST_CASE("Stop ends a VMM and its guest") {
    const GuestFilesForTest files;
    SessionDriver driver;
    driver.launch(files, 1);
    Message stop;
    stop.mutable_stop();
    CHECK(driver.ask(stop).has_abandoned());
    CHECK(driver.exit_status() == 0);
}

TEST_CASE("a guest is asked to end, and the answer says whether it listens") {
    const GuestFilesForTest files;
    SessionDriver driver;
    driver.greet();
    Message ask;
    ask.mutable_ask_to_end();
    CHECK(driver.ask(ask).failure().code() == "protocol"); // nobody is there to be asked
    driver.launch(files, 1);
    const Message deaf = driver.ask(ask);
    REQUIRE(deaf.has_asked_to_end());
    CHECK_FALSE(deaf.asked_to_end().heard());
    driver.script().listens = true;
    CHECK(driver.ask(ask).asked_to_end().heard());
    CHECK(driver.script().asked_to_end == 2);
    CHECK(files.baton.held_by(1)); // nothing has ended yet
}

TEST_CASE("an owner is not released from its guest") {
    const GuestFilesForTest files;
    SessionDriver driver;
    driver.launch(files, 1);
    Message release;
    release.mutable_release();
    CHECK(contains(driver.refusal_of(release), "runs here"));
    CHECK(driver.script().let_go == 0);
    CHECK(driver.greet().participant() == 1);
}

TEST_CASE("what happens in the guest is told to the supervisor, once") {
    const GuestFilesForTest files;
    SessionDriver driver;
    driver.launch(files, 1);
    proto::GuestEvent event;
    event.set_kind(proto::GuestEvent::EXITED);
    event.set_status(5);
    driver.script().raise(event);
    const uint64_t one = 1;
    REQUIRE(::write(driver.doorbell().get(), &one, sizeof(one)) == sizeof(one));
    const Message told = driver.receive();
    REQUIRE(told.has_guest_event());
    CHECK(told.guest_event().status() == 5);
    driver.greet(); // the next thing that arrives is the offer
}

TEST_CASE("an event in the moment when the supervisor goes neither stops the session nor is lost") {
    const GuestFilesForTest files;
    SessionDriver driver;
    driver.launch(files, 1);
    driver.script().hold_session = true;
    const uint64_t one = 1;
    REQUIRE(::write(driver.doorbell().get(), &one, sizeof(one)) == sizeof(one));
    REQUIRE(comes_true([&] { return driver.script().session_held.load(); }));
    driver.disconnect();
    proto::GuestEvent event;
    event.set_kind(proto::GuestEvent::RESET);
    driver.script().raise(event);
    driver.script().hold_session = false;
    REQUIRE(comes_true([&] { return driver.script().updates_over > 0; })); // the session has seen it go
    const int dispatched = driver.script().dispatches;
    REQUIRE(::write(driver.doorbell().get(), &one, sizeof(one)) == sizeof(one));
    CHECK(comes_true([&] { return driver.script().dispatches > dispatched; })); // the guest is still served
    driver.connect();
    driver.send(hello_message());
    bool offered = false, told = false;
    for (int i = 0; i < 2; ++i) {
        const Message message = driver.receive();
        offered |= message.has_offer();
        told |= message.has_guest_event() && message.guest_event().kind() == proto::GuestEvent::RESET;
    }
    CHECK(offered);
    CHECK(told);
}

} // namespace liveupdate::handoff
