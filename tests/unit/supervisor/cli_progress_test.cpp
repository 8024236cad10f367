#include "supervisor/cli/progress.hpp"

#include <doctest/doctest.h>

#include <sstream>

using namespace liveupdate::supervisor;
using namespace liveupdate::supervisor::cli;

namespace {

struct Screen {
    std::ostringstream out;
    std::ostringstream err;
    CliIo io{out, err, {}};
    std::string taken() {
        const std::string text = out.str();
        out.str("");
        return text;
    }
};

} // namespace

TEST_CASE("in a pipe each change is a line") {
    Screen screen;
    Progress progress(screen.io, Progress::Mode::kPlain, {"a", "b"});
    progress.phase("b", "preparing", "");
    progress.tick();
    progress.phase("a", "rehearsing", "trial");
    progress.end("b", ExitCode::kDone, "updated");
    CHECK(screen.taken() == "b: preparing\na: rehearsing: trial\nb: updated\n");
}

TEST_CASE("on a terminal the lines are drawn again in place, and ended ones stay above") {
    Screen screen;
    screen.io.columns = 60;
    Progress progress(screen.io, Progress::Mode::kLive, {"web1", "db"});
    progress.phase("web1", "preparing", "");
    CHECK(screen.taken() == "\033[Jweb1  preparing       0.0 s  [##......]  \ndb    waiting\n");
    progress.phase("web1", "an unknown phase", std::string(100, 'x'));
    const std::string drawn = screen.taken();
    CHECK(drawn.find("\033[2A\r\033[Jweb1  an unknown phase") == 0);
    CHECK(drawn.find("[##......]") != std::string::npos);
    CHECK(drawn.find('\n') - drawn.find("web1") == 59); // cut, so that it does not wrap
    progress.end("web1", ExitCode::kDone, "updated");
    CHECK(screen.taken() == "\033[2A\r\033[Jweb1: updated\ndb    waiting\n");
    progress.tick();
    CHECK(screen.taken() == "\033[1A\r\033[Jdb    waiting\n");
}

TEST_CASE("silent progress writes nothing") {
    Screen screen;
    Progress progress(screen.io, Progress::Mode::kSilent, {"a"});
    progress.phase("a", "preparing", "");
    progress.tick();
    progress.end("a", ExitCode::kLost, "lost");
    CHECK(screen.taken() == "");
}

TEST_CASE("a peer's words cannot steer the terminal") {
    Screen screen;
    Progress progress(screen.io, Progress::Mode::kPlain, {"a"});
    progress.phase("a", "x\033[2J", "y\nb: forged");
    CHECK(screen.taken() == "a: x [2J: y b: forged\n");
}
