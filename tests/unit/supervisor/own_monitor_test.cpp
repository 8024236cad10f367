#include "supervisor/qemu/own_monitor.hpp"

#include <doctest/doctest.h>

using namespace liveupdate::supervisor::qemu;

TEST_CASE("a QEMU's arguments tell its number in the guest's life, and where its own begin") {
    std::vector<std::string> all{"-machine", "q35", "-chardev", "socket,id=a,fd=16"};
    const size_t guests = all.size();
    const auto own = monitor_arguments(12);
    all.insert(all.end(), own.begin(), own.end());
    all.push_back("-S");
    const auto found = own_monitor(all);
    REQUIRE(found);
    CHECK(found->participant == 12);
    CHECK(found->at == guests);
}

TEST_CASE("nobody else's monitor is taken for one of ours") {
    for (const std::string value : {"socket,id=liveupdate-qmp-,fd=16", "socket,id=liveupdate-qmp-0,fd=16",
             "socket,id=liveupdate-qmp-3,fd=17", "socket,id=liveupdate-qmp-3", "liveupdate-qmp-3",
             "socket,id=liveupdate-qmp-3,fd=16,reconnect=1", "socket,id=liveupdate-qmp-03,fd=16",
             "socket,id=liveupdate-qmp-99999999999999999999999,fd=16"}) {
        CAPTURE(value);
        CHECK(!own_monitor({"-chardev", value}));
    }
    CHECK(!own_monitor({}));
    CHECK(!own_monitor({monitor_arguments(3)[1]})); // without its option
}
