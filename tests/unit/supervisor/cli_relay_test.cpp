#include "supervisor/cli/console_relay.hpp"

#include <doctest/doctest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "handoff/base/fd.hpp"

using namespace liveupdate;
using namespace liveupdate::supervisor::cli;

namespace {

struct Ends {
    UniqueFd ours, theirs;
    Ends() {
        auto pair = fd::socketpair(SOCK_STREAM);
        REQUIRE(pair.has_value());
        ours = std::move(pair->first);
        theirs = std::move(pair->second);
    }
    void write(std::string_view text) {
        REQUIRE(fd::write_all(ours.get(), text.data(), text.size()).has_value());
    }
    std::string read() {
        char buffer[256];
        const ssize_t n = ::recv(ours.get(), buffer, sizeof(buffer), MSG_DONTWAIT);
        return n > 0 ? std::string(buffer, static_cast<size_t>(n)) : "";
    }
};

bool never() {
    return false;
}

} // namespace

TEST_CASE("keys go to the guest until the leave key, which does not") {
    Ends keyboard, screen, console;
    keyboard.write("ls\r\x1dmore");
    CHECK(relay_console(keyboard.theirs.get(), screen.theirs.get(), console.theirs.get(), never).value() ==
          RelayEnd::kLeft);
    CHECK(console.read() == "ls\r");
}

TEST_CASE("the guest's output is shown until its console closes") {
    Ends keyboard, screen, console;
    console.write("login: ");
    console.ours.reset();
    CHECK(relay_console(keyboard.theirs.get(), screen.theirs.get(), console.theirs.get(), never).value() ==
          RelayEnd::kConsoleClosed);
    CHECK(screen.read() == "login: ");
}

TEST_CASE("after the end of the input the guest's output is still shown") {
    Ends keyboard, screen, console;
    keyboard.write("date\r");
    keyboard.ours.reset();
    int calls = 0;
    const auto answer_then_close = [&] {
        if (++calls == 2) console.write("today");
        if (calls == 3) console.ours.reset();
        return false;
    };
    CHECK(relay_console(keyboard.theirs.get(), screen.theirs.get(), console.theirs.get(), answer_then_close)
              .value() == RelayEnd::kConsoleClosed);
    CHECK(screen.read() == "today");
}

TEST_CASE("an interrupt ends the relay") {
    Ends keyboard, screen, console;
    CHECK(relay_console(keyboard.theirs.get(), screen.theirs.get(), console.theirs.get(), [] {
        return true;
    }).value() == RelayEnd::kInterrupted);
}
