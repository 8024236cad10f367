// The registers of virtio over MMIO and the rings behind them, before a device that gives back what it takes.
#include "tests/fuzz/virtio_driver.hpp"
#include "vmm/devices/state_message.hpp"
#include "vmm/devices/virtio/transport.pb.h"

namespace {

using namespace liveupdate;
using namespace liveupdate::vmm::virtio;

class Echo final : public VirtioDevice {
public:
    explicit Echo(const Place& place) { attach(place); }
    ~Echo() override { shut(); }

    std::string_view name() const override { return "echo0"; }
    vmm::StateDeclaration state() const override { return vmm::StateSchema{"echo", 1, 1}; }
    Result<std::string> save() const override {
        vmm::state::VirtioTransport message;
        transport().save(message);
        return vmm::serialise_state(message);
    }
    Result<void> load(std::string_view bytes, uint32_t version) override {
        vmm::state::VirtioTransport message;
        TRY(vmm::parse_state(message, bytes, version, {"echo", 1, 1}));
        TRY_ASSIGN(auto queues, transport().check(message));
        transport().apply(message, std::move(queues));
        return {};
    }
    std::vector<CarriedFd> carried() override { return {}; }
    bool at_rest() const override { return true; }

protected:
    uint32_t device_id() const override { return 99; }
    uint64_t device_features() const override { return 0xff; }
    std::vector<uint16_t> queue_limits() const override { return {1, 2, 64, 256, kMaxQueueSize}; }
    void read_config(uint64_t offset, std::span<uint8_t> into) const override {
        for (size_t i = 0; i < into.size(); ++i)
            into[i] = offset + i < config_.size() ? config_[offset + i] : 0;
    }
    void write_config(uint64_t offset, std::span<const uint8_t> from) override {
        for (size_t i = 0; i < from.size(); ++i)
            if (offset + i < config_.size()) config_[offset + i] = from[i];
    }
    void activated() override {}
    void was_reset() override {}
    void settle() override {}
    Result<void> open_back_end() override { return {}; }
    void ready(uint64_t) override {}
    void look() override {}
    Deadline wake_at() const override { return Deadline::never(); }

    void finish_round() override {
        for (size_t i = 0; i < transport().queue_count(); ++i)
            if (Queue* const queue = transport().queue(i)) serve(*queue);
    }

private:
    // Copies what it reads to what it writes. Every third buffer is taken back first.
    void serve(Queue& queue) {
        queue.suppress_kicks();
        for (int n = 0; n < 64; ++n) {
            const auto popped = queue.pop(chain_);
            if (!popped) return transport().fail();
            if (!*popped && !queue.expect_kick()) break;
            if (!*popped) continue;
            if (++taken_ % 3 == 0) {
                queue.unpop(1);
                continue;
            }
            std::vector<uint8_t> bytes(std::min<uint64_t>(chain_.readable_bytes, 4096));
            if (!take_front(chain_.readable, bytes)) std::abort();
            const auto written = static_cast<uint32_t>(write_front(chain_.writable, bytes));
            queue.stage(chain_.head, written);
            queue.publish();
        }
        transport().signal_used(queue);
    }

    std::array<uint8_t, 16> config_{};
    unsigned taken_ = 0;
    Chain chain_;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    fuzz::Input input(data, size);
    fuzz::Ram ram;
    fuzz::Interrupt interrupt;
    Echo device({ram.memory(), interrupt});
    fuzz::Driver(ram, device, [](fuzz::Input&) {}).obey(input);
    return 0;
}
