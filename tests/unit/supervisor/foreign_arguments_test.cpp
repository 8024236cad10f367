#include "supervisor/qemu/foreign_arguments.hpp"

#include <doctest/doctest.h>

using namespace liveupdate::supervisor::qemu;

namespace {

using Words = std::vector<std::string>;

ForeignArguments read(const Words& arguments) {
    return read_foreign_arguments(
        arguments, "pc-q35-7.2", [](const std::string& path) { return path == "here.img"; });
}

Words obstacles(Words arguments) {
    arguments.insert(arguments.begin(), {"-M", "q35"});
    return read(arguments).obstacles;
}

} // namespace

TEST_CASE("what belongs to one process is left out, and the machine type is exact") {
    const auto found = read({"-daemonize", "-S", "--pidfile", "/run/q.pid", "-qmp", "unix:/q.sock,server=on",
        "-M", "q35,smm=off", "-m", "1G", "-incoming", "defer", "-monitor", "unix:/m,server", "-nodefaults"});
    CHECK(found.obstacles.empty());
    CHECK(found.arguments == Words{"-machine", "type=pc-q35-7.2,smm=off", "-m", "1G", "-nodefaults"});
}

TEST_CASE("a machine that nobody named is named") {
    CHECK(read({"-m", "1G"}).arguments == Words{"-machine", "type=pc-q35-7.2", "-m", "1G"});
    CHECK(
        read({"-machine", "accel=kvm,type=q35"}).arguments == Words{"-machine", "type=pc-q35-7.2,accel=kvm"});
}

TEST_CASE("the character device of a monitor goes with it") {
    const auto found = read({"-machine", "q35", "-chardev", "socket,id=mon0,path=/m,server=on,wait=off",
        "-mon", "chardev=mon0,mode=control"});
    CHECK(found.obstacles.empty());
    CHECK(found.arguments == Words{"-machine", "type=pc-q35-7.2"});
}

TEST_CASE("what a second QEMU could not have is in the way") {
    const Words in_the_way[] = {{"-vnc", ":0"}, {"-spice", "port=5900"}, {"-s"}, {"-gdb", "tcp::1234"},
        {"-serial", "unix:/s,server=on,wait=off"}, {"-chardev", "socket,id=c,path=/s,server"},
        {"-chardev", R"({"id":"c","backend":"socket","server":true})"}, {"-serial", "mon:stdio"},
        {"-nographic"}, {"-netdev", "tap,id=n,fd=31"}, {"-netdev", R"({"type":"tap","fds":"31:32"})"},
        {"-add-fd", "fd=3,set=1"}, {"-netdev", "user,id=n,hostfwd=tcp::2222-:22"},
        {"-netdev", R"({"type":"user","id":"n","hostfwd":[{"str":"tcp::2222-:22"}]})"},
        {"-netdev", "socket,id=n,listen=:1"}, {"-netdev", "socket,id=n,udp=h:1,localaddr=:2"},
        {"-netdev", "dgram,id=n,local.type=inet,local.port=1,remote.type=inet,remote.host=h,remote.port=2"},
        {"-netdev", R"({"type":"dgram","id":"n","local":{"type":"inet","port":"1"}})"},
        {"-netdev", "vhost-user,chardev=c"}, {"-snapshot"}, {"-display", "gtk"},
        {"-drive", "file=here.img,format=raw"}, {"-kernel", "here.img"},
        {"-blockdev", R"({"driver":"file","filename":"here.img"})"}, {"-accel", "kvm,kernel-irqchip=split"},
        {"-M", "q35,kernel_irqchip=split"}, {"-unheard-of", "-qmp", "unix:/q"}};
    for (const Words& arguments : in_the_way) {
        CAPTURE(arguments.front() + (arguments.size() > 1 ? " " + arguments.back() : ""));
        CHECK(!obstacles(arguments).empty());
    }
}

TEST_CASE("what a second QEMU can have as well is not in the way") {
    const Words fine[] = {{"-vnc", "none"}, {"-display", "none"}, {"-serial", "none"},
        {"-serial", "file:/log"}, {"-chardev", "socket,id=c,path=/s,server=off"},
        {"-drive", "file=/a/here.img,format=raw"}, {"-netdev", "user,id=n"},
        {"-netdev", "socket,id=n,mcast=230.0.0.1:1234,localaddr=10.0.0.1"},
        {"-netdev", R"({"type":"stream","id":"n","server":false,"addr":{"type":"unix","path":"/x"}})"},
        {"-name", "here.img"}, {"-nographic", "-serial", "none"}, {"-cpu", "host"},
        {"-mem-prealloc", "-qmp", "unix:/q,server=on"}};
    for (const Words& arguments : fine) {
        CAPTURE(arguments.front() + (arguments.size() > 1 ? " " + arguments.back() : ""));
        CHECK(obstacles(arguments).empty());
    }
}

TEST_CASE("a microvm is taken over only with the kernel's IOAPIC") {
    const auto obstacles_of = [](const std::string& machine) {
        return read_foreign_arguments({"-M", machine}, "microvm", [](const std::string&) {
            return false;
        }).obstacles.size();
    };
    CHECK(obstacles_of("microvm") == 1);
    CHECK(obstacles_of("microvm,ioapic2=off") == 1);
    CHECK(obstacles_of("microvm,ioapic2=off,kernel-irqchip=on") == 0);
}
