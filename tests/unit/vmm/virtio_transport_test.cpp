#include "vmm/devices/virtio/mmio_transport.hpp"

#include "tests/unit/vmm/virtio_fixture.hpp"
#include "vmm/devices/virtio/virtio_device.hpp"

namespace liveupdate::vmm::test {
namespace {

using namespace virtio;

constexpr uint64_t kOwnFeature = 1 << 5;
constexpr uint64_t kAll = kRingFeatures | kOwnFeature;

// Gives every buffer back, filled with the number of its queue.
class Echo final : public VirtioDevice {
public:
    Echo(GuestRam& ram, FakeInterrupt& interrupt) { attach({ram.memory(), interrupt}); }
    ~Echo() override { shut(); }

    std::string_view name() const override { return "echo0"; }
    StateDeclaration state() const override { return StateSchema{"echo", 1, 1}; }
    Result<std::string> save() const override {
        state::VirtioTransport message;
        transport().save(message);
        return message.SerializeAsString();
    }
    Result<void> load(std::string_view bytes, uint32_t) override {
        state::VirtioTransport message;
        REQUIRE(message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())));
        TRY_ASSIGN(auto queues, VirtioDevice::transport().check(message));
        VirtioDevice::transport().apply(message, std::move(queues));
        return {};
    }

    std::vector<CarriedFd> carried() override { return {}; }
    bool at_rest() const override { return true; }

    std::atomic<int> served{0};
    int activations = 0;
    int resets = 0;
    std::atomic<bool> slow{false};
    std::atomic<int> rounds{0};

protected:
    uint32_t device_id() const override { return 42; }
    uint64_t device_features() const override { return kOwnFeature; }
    std::vector<uint16_t> queue_limits() const override { return {256, 64}; }
    void read_config(uint64_t offset, std::span<uint8_t> into) const override {
        for (size_t i = 0; i < into.size(); ++i)
            into[i] = static_cast<uint8_t>(offset + i);
    }
    void write_config(uint64_t, std::span<const uint8_t>) override {}
    void activated() override { ++activations; }
    void was_reset() override { ++resets; }
    void settle() override {}
    Result<void> open_back_end() override { return {}; }

    void ready(uint64_t token) override {
        const size_t index = token - kFirstQueueToken;
        VirtioDevice::transport().clear_kick(index);
        serve(index);
    }
    void look() override {
        serve(0);
        serve(1);
    }
    void finish_round() override { ++rounds; }
    Deadline wake_at() const override { return Deadline::never(); }

private:
    void serve(size_t index) {
        Queue* queue = VirtioDevice::transport().queue(index);
        if (queue == nullptr) return;
        Chain chain;
        do {
            for (;;) {
                if (slow) std::this_thread::sleep_for(std::chrono::milliseconds(20));
                const auto popped = queue->pop(chain);
                if (!popped) return VirtioDevice::transport().fail();
                if (!*popped) break;
                for (auto& segment : chain.writable)
                    std::fill(segment.bytes.begin(), segment.bytes.end(), static_cast<uint8_t>(index + 1));
                queue->push(chain.head, static_cast<uint32_t>(chain.writable_bytes));
                ++served;
            }
            VirtioDevice::transport().signal_used(*queue);
        } while (queue->expect_kick());
    }
};

struct Machine {
    GuestRam ram;
    FakeInterrupt interrupt;
    Echo device{ram, interrupt};
    Registers registers{device.transport()};
    DriverQueue first{ram};
    DriverQueue second{ram, 64, 0x2000, 0xa000, 0xb000};

    void start() {
        REQUIRE(device.open());
        device.unhold();
        registers.agree(kAll);
        registers.set_up(0, first);
        registers.set_up(1, second);
        registers.drive();
    }
};

TEST_CASE("the registers say what the device is") {
    Machine m;
    CHECK(m.registers.get(0x00) == 0x74726976);
    CHECK(m.registers.get(0x04) == 2);
    CHECK(m.registers.get(0x08) == 42);
    CHECK(m.registers.get(0x10) == uint32_t(kAll));
    m.registers.set(0x14, 1);
    CHECK(m.registers.get(0x10) == uint32_t(kAll >> 32));
    m.registers.set(0x14, 2);
    CHECK(m.registers.get(0x10) == 0);
    CHECK(m.registers.get(0x34) == 256);
    m.registers.set(0x30, 1);
    CHECK(m.registers.get(0x34) == 64);
    m.registers.set(0x30, 2); // there is none
    CHECK(m.registers.get(0x34) == 0);
    CHECK(m.registers.get(0xb0) == UINT32_MAX); // no shared memory
    CHECK(m.device.transport().read(0x104, 2) == 0x0504);
    CHECK(m.device.transport().read(0x109, 1) == 9);
    CHECK(m.device.transport().read(0x00, 1) == 0); // registers are 32 bits wide
}

TEST_CASE("features that were not offered are not agreed to") {
    Machine m;
    m.registers.agree(kAll | 1);
    CHECK(m.registers.status() == 3);
    m.registers.agree(kOwnFeature); // without VERSION_1
    CHECK(m.registers.status() == 3);
    m.registers.drive(); // without features there is no driving
    CHECK(m.registers.status() == 3);
    CHECK(m.device.activations == 0);
    m.registers.agree(kAll);
    CHECK(m.registers.status() == 11);
    m.registers.set(0x24, 0);
    m.registers.set(0x20, 0); // too late
    CHECK(m.device.transport().features() == kAll);
}

TEST_CASE("a driver that is ready is served, on kicks and without an exit's help") {
    Machine m;
    m.start();
    CHECK(m.device.activations == 1);
    m.first.chain(0, {{0x10000, 100, kDescWrite, 0}});
    m.first.offer(0);
    m.registers.set(0x50, 0);
    CHECK(eventually([&] { return m.first.used_index() == 1; }));
    CHECK(*m.ram.at(0x10063) == 1);
    CHECK(eventually([&] { return m.interrupt.raised == 1; }));
    CHECK(m.registers.get(0x60) == 1);
    m.registers.set(0x64, 1);
    CHECK(m.registers.get(0x60) == 0);

    m.second.chain(5, {{0x10000, 8, kDescWrite, 0}});
    m.second.offer(5);
    const uint64_t one = 1; // as KVM does for an ioeventfd
    REQUIRE(::write(m.device.transport().kick_fd(1), &one, sizeof one) == sizeof one);
    CHECK(eventually([&] { return m.second.used_index() == 1; }));
    CHECK(m.second.used_element(0) == std::array<uint32_t, 2>{5, 8});
    m.registers.set(0x50, 2); // kicks of queues that are not there go nowhere
    m.registers.set(0x50, UINT32_MAX);
}

TEST_CASE("a broken ring stops the device until it is reset") {
    Machine m;
    m.start();
    m.first.offer(999);
    m.registers.set(0x50, 0);
    CHECK(eventually([&] { return (m.registers.status() & 64) != 0; }));
    CHECK(eventually([&] { return (m.registers.get(0x60) & 2) != 0; })); // a configuration change
    m.second.chain(0, {{0x10000, 8, kDescWrite, 0}});
    m.second.offer(0);
    m.registers.set(0x50, 1);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(m.second.used_index() == 0);

    m.first.publish(0);
    m.second.publish(0);
    m.registers.agree(kAll);
    m.registers.set_up(1, m.second);
    m.registers.drive();
    CHECK(m.registers.status() == 15);
    m.second.offer(0);
    m.registers.set(0x50, 1);
    CHECK(eventually([&] { return m.second.used_index() == 1; }));
}

TEST_CASE("a ring that lies nowhere stops the device when the driver says that it is ready") {
    Machine m;
    REQUIRE(m.device.open());
    m.device.unhold();
    m.registers.agree(kAll);
    m.first.used = GuestRam::kSize - 4;
    m.registers.set_up(0, m.first);
    m.registers.drive();
    CHECK((m.registers.status() & 64) != 0);
    CHECK(m.device.transport().queue(0) == nullptr);
}

TEST_CASE("queue sizes that cannot be make no queue") {
    Machine m;
    m.registers.agree(kAll);
    for (const uint32_t size : {0u, 3u, 512u, 32768u, 65536u + 16}) {
        m.registers.set(0x30, 0);
        m.registers.set(0x38, size);
        m.registers.set(0x44, 1);
        CHECK(m.registers.get(0x44) == 0);
    }
    m.registers.set(0x38, 256);
    m.registers.set(0x44, 1);
    CHECK(m.registers.get(0x44) == 1);
}

TEST_CASE("a reset takes everything back") {
    Machine m;
    m.start();
    m.registers.set(0x70, 0);
    CHECK(m.device.resets == 2); // agree() begins with one
    CHECK(m.registers.status() == 0);
    CHECK(m.registers.get(0x44) == 0);
    CHECK(m.device.transport().queue(0) == nullptr);
    m.first.chain(0, {{0x10000, 8, kDescWrite, 0}});
    m.first.offer(0);
    m.registers.set(0x50, 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(m.first.used_index() == 0);
}

TEST_CASE("a held device touches nothing, and looks at everything afterwards") {
    Machine m;
    m.start();
    m.first.chain(0, {{0x10000, 8, kDescWrite, 0}});
    for (int round = 1; round <= 200; ++round) {
        m.device.hold();
        REQUIRE(m.device.await_held(Deadline::after(std::chrono::seconds(10))));
        const int rounds = m.device.rounds;
        m.first.offer(0);
        m.registers.set(0x50, 0);
        if (round % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        REQUIRE(m.device.rounds == rounds);
        REQUIRE(m.first.used_index() == uint16_t(round - 1));
        if (round % 2 == 0) m.device.transport().clear_kick(0); // lost with another process
        m.device.unhold();
        REQUIRE(eventually([&] { return m.first.used_index() == uint16_t(round); }));
    }
}

TEST_CASE("a hold waits for the round that is under way, and no longer than it may") {
    Machine m;
    m.start();
    m.device.slow = true;
    m.first.chain(0, {{0x10000, 8, kDescWrite, 0}});
    for (int i = 0; i < 10; ++i)
        m.first.offer(0);
    m.registers.set(0x50, 0);
    REQUIRE(eventually([&] { return m.device.served > 0; }));
    m.device.hold();
    CHECK_FALSE(m.device.await_held(Deadline::after(std::chrono::milliseconds(1))));
    CHECK(m.device.await_held(Deadline::after(std::chrono::seconds(20))));
    CHECK(m.device.served == 10);
}

TEST_CASE("a device goes on where another one stopped, and raises its interrupt again") {
    Machine from;
    from.start();
    from.first.chain(0, {{0x10000, 8, kDescWrite, 0}});
    for (int i = 0; i < 3; ++i)
        from.first.offer(0);
    from.registers.set(0x50, 0);
    REQUIRE(eventually([&] { return from.first.used_index() == 3 && from.interrupt.raised > 0; }));
    from.device.hold();
    REQUIRE(from.device.await_held(Deadline::never()));
    from.first.offer(0); // seen by the next one only

    FakeInterrupt interrupt;
    Echo to(from.ram, interrupt);
    REQUIRE(to.open());
    const std::string saved = *from.device.save();
    REQUIRE(to.load(saved, 1));
    CHECK(*to.save() == saved);
    to.unhold();
    CHECK(interrupt.raised >= 1);
    CHECK(eventually([&] { return from.first.used_index() == 4; }));
    CHECK(Registers{to.transport()}.status() == 15);
}

TEST_CASE("registers that cannot be are not loaded") {
    Machine m;
    m.start();
    m.device.hold();
    REQUIRE(m.device.await_held(Deadline::never()));
    state::VirtioTransport good;
    m.device.transport().save(good);
    REQUIRE(m.device.transport().check(good));
    const std::vector<std::pair<std::function<void(state::VirtioTransport&)>, const char*>> all{
        {[](auto& s) { s.set_status(0x1000); }, "status"},
        {[](auto& s) { s.set_status(4); }, "agreed to nothing"},
        {[](auto& s) { s.set_interrupt_status(4); }, "interrupt_status"},
        {[](auto& s) { s.set_driver_features(s.driver_features() | 1); }, "driver_features"},
        {[](auto& s) { s.set_driver_features(kOwnFeature); }, "VERSION_1"},
        {[](auto& s) { s.add_queues(); }, "3 queues"},
        {[](auto& s) { s.clear_queues(); }, "0 queues"},
        {[](auto& s) { s.mutable_queues(0)->set_size(17); }, "power of two"},
        {[](auto& s) { s.mutable_queues(1)->set_size(128); }, "at most 64"},
        {[](auto& s) { s.mutable_queues(0)->set_size(0); }, "without a size"},
        {[](auto& s) { s.mutable_queues(0)->set_next_used(65536); }, "next_used"},
        {[](auto& s) { s.mutable_queues(0)->set_used(GuestRam::kSize); }, "used ring"},
        {[](auto& s) { s.mutable_queues(0)->set_descriptors(8); }, "aligned"},
    };
    for (const auto& [change, word] : all) {
        auto bad = good;
        change(bad);
        const auto checked = m.device.transport().check(bad);
        CAPTURE(word);
        REQUIRE_FALSE(checked);
        CHECK(checked.error().message.find(word) != std::string::npos);
    }
}

} // namespace
} // namespace liveupdate::vmm::test
