// The queues and registers of virtio-net; its two taps are sockets that keep packets apart as a tap does.
#include "vmm/devices/virtio/net.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "handoff/base/fd.hpp"
#include "tests/fuzz/virtio_driver.hpp"

namespace {

using namespace liveupdate;

constexpr uint16_t kPairs = 2;

struct Wire {
    UniqueFd tap, host;
};

Wire make_wire() {
    auto ends = fd::socketpair(SOCK_SEQPACKET);
    if (!ends) std::abort();
    for (const int end : {ends->first.get(), ends->second.get()})
        ::fcntl(end, F_SETFL, O_NONBLOCK);
    return {std::move(ends->first), std::move(ends->second)};
}

// A packet to the guest, or all that it has sent.
void serve(const Wire& wire, fuzz::Input& input) {
    const uint8_t what = input.byte();
    if (what % 2 == 0) {
        std::vector<uint8_t> packet(input.take<uint16_t>() % 4096);
        const auto bytes = input.take_bytes(std::min<size_t>(packet.size(), 64));
        std::copy(bytes.begin(), bytes.end(), packet.begin());
        static_cast<void>(::send(wire.host.get(), packet.data(), packet.size(), MSG_NOSIGNAL));
        return;
    }
    std::array<uint8_t, 256> sink{};
    while (::recv(wire.host.get(), sink.data(), sink.size(), MSG_TRUNC) > 0) {
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    fuzz::Input input(data, size);
    fuzz::Ram ram;
    fuzz::Interrupt interrupt;
    std::vector<Wire> wires;
    std::vector<vmm::virtio::Tap> taps;
    for (int i = 0; i < kPairs; ++i) {
        wires.push_back(make_wire());
        taps.emplace_back(std::move(wires.back().tap));
    }
    const vmm::virtio::NetSpec spec{
        0, {0x52, 0x54, 0, 1, 2, 3}, kPairs, 1500, vmm::virtio::kKnownTapOffloads};
    vmm::virtio::Net device(spec, std::move(taps), {ram.memory(), interrupt});
    fuzz::Driver(ram, device, [&](fuzz::Input& more) {
        serve(wires[more.byte() % kPairs], more);
    }).obey(input);
    return 0;
}
