// A source of entropy (virtio 1.2, section 5.4), fed by the host kernel's getrandom(2).
//
//     queue 0   requestq: buffers for the device to fill
#pragma once

#include "vmm/devices/virtio/virtio_device.hpp"

namespace liveupdate::vmm::virtio {

class Rng final : public VirtioDevice {
public:
    static constexpr const char* kSection = "virtio-rng";
    static constexpr uint32_t kStateVersion = 1;
    static constexpr uint32_t kOldestLoadable = 1;

    explicit Rng(const Place& place) { attach(place); }
    ~Rng() override { shut(); }

    std::string_view name() const override { return "rng0"; }
    StateDeclaration state() const override { return StateSchema{kSection, kStateVersion, kOldestLoadable}; }
    Result<std::string> save() const override;
    Result<void> load(std::string_view bytes, uint32_t version) override;
    std::vector<CarriedFd> carried() override { return {}; }
    bool at_rest() const override { return true; }

protected:
    // TransportUser. There is no configuration space.
    uint32_t device_id() const override { return 4; }
    uint64_t device_features() const override { return 0; }
    std::vector<uint16_t> queue_limits() const override { return {64}; }
    void read_config(uint64_t offset, std::span<uint8_t> into) const override;
    void write_config(uint64_t, std::span<const uint8_t>) override {}
    void activated() override {}
    void was_reset() override {}
    void settle() override {}
    Result<void> open_back_end() override { return {}; }

    // WorkerClient.
    void ready(uint64_t token) override;
    void look() override { due_ = true; }
    void finish_round() override;
    Deadline wake_at() const override;

private:
    void serve(Queue& queue);

    bool due_ = true; // the queue is to be looked at; the worker's
    Chain chain_;     // scratch
};

} // namespace liveupdate::vmm::virtio
