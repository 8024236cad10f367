#include "supervisor/qemu/listening_plan.hpp"

#include <doctest/doctest.h>
#include <sys/socket.h>

using namespace liveupdate;
using namespace liveupdate::supervisor::qemu;

namespace {

using Arguments = std::vector<std::string>;

std::string refusal(const Arguments& extra_args) {
    const auto plan = plan_listening(extra_args);
    return plan ? "" : plan.error().message;
}

} // namespace

TEST_CASE("what does not listen is passed as it is") {
    const Arguments all = {"-device", "pvpanic", "-snapshot", "-chardev", "socket,id=a,path=/run/a",
        "-chardev", "socket,id=b,host=h,port=1,server=off", "-netdev", "user,id=u"};
    const auto plan = plan_listening(all).value();
    CHECK(plan.arguments == all);
    CHECK(plan.sockets.empty());
}

TEST_CASE(
    "a character device that listens is given the number of a socket, and keeps what is not its place") {
    const auto plan = plan_listening(
        {"-chardev", "socket,id=a,path=/run/a,,b,server=on,wait=off,logfile=/l,,m", "-device", "pvpanic",
            "--chardev", "socket,server,nowait,telnet,host=::1,port=77,id=t,ipv6=on"})
                          .value();
    CHECK(plan.arguments == Arguments{"-chardev", "socket,id=a,logfile=/l,,m,fd=40,server=on,wait=off",
                                "-device", "pvpanic", "-chardev",
                                "socket,telnet=on,id=t,fd=41,server=on,wait=off"});
    REQUIRE(plan.sockets.size() == 2);
    CHECK(plan.sockets[0].path == "/run/a,b");
    CHECK(plan.sockets[1].host == "::1");
    CHECK(plan.sockets[1].port == "77");
    CHECK(plan.sockets[1].family == AF_INET6);
    CHECK(listening_numbers(plan.arguments) == std::vector<int>{40, 41});
    CHECK(listening_numbers({"-chardev", "socket,id=a,fd=9,server=on,wait=off", "socket"}).empty());
}

TEST_CASE("what listens where two QEMUs could not is refused in words") {
    const std::string device = "socket,id=a,server=on,";
    CHECK(
        refusal({"-chardev", device + "path=a"}) ==
        "extra_args: '-chardev " + device + "path=a' has a path that is not absolute; write it from '/' on");
    CHECK(refusal({"-chardev", device + "path=/a,wait=on"}).find("write wait=off") != std::string::npos);
    CHECK(refusal({"-chardev", "socket,id=a,server=on"}).find("has no address") != std::string::npos);
    for (const char* key : {"abstract=on,path=/a", "to=9,host=h,port=8", "fd=7"})
        CHECK_MESSAGE(refusal({"-chardev", device + key}).find("not taken here") != std::string::npos, key);
    for (const Arguments& all : {Arguments{"-qmp", "unix:/a,server=on,wait=off"},
             Arguments{"-serial", "tcp::4,server"}, Arguments{"-serial", "unix:/p,server=y"},
             Arguments{"-nic", "socket,listen=:1234"}, Arguments{"-net", "socket,udp=h:1,localaddr=:2"}})
        CHECK_MESSAGE(refusal(all).find("-chardev socket") != std::string::npos, all[0]);
    CHECK(refusal({"-new-bare-option", "-qmp", "unix:/a,server=on"}).find("is not understood") !=
          std::string::npos);
    CHECK(refusal({"-async-teardown", "-qmp", "unix:/a,server=on"}).find("-chardev socket") !=
          std::string::npos);
    Arguments many;
    for (int i = 0; i <= kMostListening; ++i)
        many.insert(many.end(), {"-chardev", device + "path=/a" + std::to_string(i)});
    CHECK(refusal(many) == "extra_args: more than 16 devices listen");
}

TEST_CASE("a network that listens is given the number of a socket, in whichever form it is written") {
    const auto plan = plan_listening(
        {"-netdev", "stream,id=a,server=on,addr.type=inet,addr.host=::1,addr.port=7,addr.ipv6=on", "-chardev",
            "socket,id=c,path=/c,server=on", "-netdev",
            R"({"type":"stream","id":"b","server":true,"addr":{"type":"unix","path":"/b,b"}})", "-netdev",
            "socket,id=d,listen=:1234", "-netdev", "server=on,addr.path=/e,type=stream,id=e"})
                          .value();
    CHECK(plan.arguments == Arguments{"-netdev", "stream,id=a,server=on,addr.type=fd,addr.str=40", "-chardev",
                                "socket,id=c,fd=41,server=on,wait=off", "-netdev",
                                "stream,id=b,server=on,addr.type=fd,addr.str=42", "-netdev",
                                "stream,id=d,server=on,addr.type=fd,addr.str=43", "-netdev",
                                "stream,id=e,server=on,addr.type=fd,addr.str=44"});
    REQUIRE(plan.sockets.size() == 5);
    CHECK(plan.sockets[0].host == "::1");
    CHECK(plan.sockets[0].port == "7");
    CHECK(plan.sockets[0].family == AF_INET6);
    CHECK(plan.sockets[2].path == "/b,b");
    CHECK(plan.sockets[3].host.empty());
    CHECK(plan.sockets[3].port == "1234");
    CHECK(plan.sockets[3].family == AF_INET);
    for (const ListeningSocket& each : plan.sockets)
        CHECK(!each.has_peer());
    CHECK(listening_numbers(plan.arguments) == std::vector<int>{40, 41, 42, 43, 44});
}

TEST_CASE("a network that hears one peer is given the number of a socket that is connected to it") {
    const auto plan = plan_listening(
        {"-netdev",
            "dgram,id=a,local.type=inet,local.host=127.0.0.1,local.port=7,remote.type=inet,remote.host=h,"
            "remote.port=8",
            "-netdev", "socket,id=b,udp=10.0.0.9:77,localaddr=:78"})
                          .value();
    CHECK(plan.arguments == Arguments{"-netdev", "dgram,id=a,local.type=fd,local.str=40", "-netdev",
                                "dgram,id=b,local.type=fd,local.str=41"});
    REQUIRE(plan.sockets.size() == 2);
    CHECK(plan.sockets[0].host == "127.0.0.1");
    CHECK(plan.sockets[0].port == "7");
    CHECK(plan.sockets[0].peer_host == "h");
    CHECK(plan.sockets[0].peer_port == "8");
    CHECK(plan.sockets[1].host.empty());
    CHECK(plan.sockets[1].port == "78");
    CHECK(plan.sockets[1].peer_host == "10.0.0.9");
    CHECK(plan.sockets[1].peer_port == "77");
    CHECK(listening_numbers(plan.arguments) == std::vector<int>{40, 41});
}

TEST_CASE("a network that connects, or joins a group, is passed as it is") {
    for (const char* network :
        {"stream,id=n,server=off,addr.type=inet,addr.host=h,addr.port=1", "socket,id=n,connect=h:1",
            R"({"type":"stream","id":"n","server":false,"addr":{"type":"unix","path":"/x"}})",
            "socket,id=n,mcast=230.0.0.1:1234,localaddr=10.0.0.1",
            "dgram,id=n,remote.type=inet,remote.host=230.0.0.1,remote.port=1",
            "dgram,id=n,remote.type=inet,remote.host=230.0.0.1,remote.port=1,local.type=inet,"
            "local.host=10.0.0.1,local.port=2",
            R"({"type":"dgram","id":"n","remote":{"type":"inet","host":"230.0.0.1","port":"1"},)"
            R"("local":{"type":"inet","host":"10.0.0.1","port":"2"}})",
            R"({"type":"user","id":"n"})"}) {
        const auto plan = plan_listening({"-netdev", network});
        REQUIRE_MESSAGE(plan, plan.error().message);
        CHECK(plan->arguments == Arguments{"-netdev", network});
        CHECK(plan->sockets.empty());
    }
}

TEST_CASE("a network that listens where the supervisor cannot is refused in words") {
    const auto of = [](const std::string& network) { return refusal({"-netdev", network}); };
    const std::string stream = "stream,id=n,server=on,";
    CHECK(of(stream + "addr.type=fd,addr.str=9").find("'addr.str', which is not taken here") !=
          std::string::npos);
    CHECK(of(stream + "addr.type=vsock,addr.cid=9,addr.port=1").find("not taken here") != std::string::npos);
    CHECK(of(stream + "addr.type=vsock").find("'addr.type=vsock', which is not") != std::string::npos);
    CHECK(of(stream + "addr.type=inet,addr.host=h").find("has no address") != std::string::npos);
    CHECK(of(stream + "addr.type=unix,addr.path=x").find("not absolute") != std::string::npos);
    CHECK(of("socket,id=n,listen=1234").find("write listen=HOST:PORT") != std::string::npos);
    CHECK(of("socket,id=n,udp=h:1").find("write localaddr=HOST:PORT") != std::string::npos);
    CHECK(of("socket,id=n,udp=h,localaddr=:1").find("write udp=HOST:PORT") != std::string::npos);
    CHECK(of("dgram,id=n,local.type=unix,local.path=/l,remote.type=unix,remote.path=/r")
              .find("not taken here; write local.type=inet") != std::string::npos);
    CHECK(of("dgram,id=n,local.type=inet,local.host=h,local.port=1").find("lacks one of its two addresses") !=
          std::string::npos);
}

TEST_CASE("whoever cannot have an option is told what to write instead") {
    for (const Arguments& all :
        {Arguments{"-gdb", "tcp::1"}, Arguments{"-gdb", "chardev:g"}, Arguments{"-s"}})
        CHECK_MESSAGE(refusal(all).find("gdbserver chardev:ID") != std::string::npos, all[0]);
    CHECK(refusal({"-spice", "port=1"}).find("write vnc = ") != std::string::npos);
    for (const Arguments& all :
        {Arguments{"-netdev", "user,id=n,hostfwd=tcp::5-:22"}, Arguments{"-nic", "user,hostfwd=tcp::5-:22"},
            Arguments{"-netdev", R"({"type":"user","id":"n","hostfwd":[{"str":"tcp::5-:22"}]})"}})
        CHECK_MESSAGE(refusal(all).find("write hostfwd = [\"tcp:127.0.0.1:2222-:22\"] in a [[net]]") !=
                          std::string::npos,
            all[1]);
}
