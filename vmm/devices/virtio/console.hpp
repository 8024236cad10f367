// A console of one port (virtio 1.2, section 5.3).
//
//     queue 0   receiveq  ◄── input   ◄── the console's loop: at most as much as there is room for
//     queue 1   transmitq ──► output  ──► the console's loop
//
// The worker moves bytes between the driver's buffers and the two byte queues, the loop of the back end
// between those and its file. A buffer that does not fit into `output` is taken in parts: it stays the ring's
// next one, with a count of what is taken. So each byte is in one place at any moment, and an update that
// saves the rings' positions, both queues and that count neither loses nor doubles one.
//
// While somebody reads the console, a guest that writes faster waits; while nobody does, what finds `output`
// full is dropped and counted, as with the serial port.
#pragma once

#include <mutex>

#include "handoff/base/unique_fd.hpp"
#include "vmm/devices/byte_queue.hpp"
#include "vmm/devices/console_backend.hpp"
#include "vmm/devices/virtio/virtio_device.hpp"

namespace liveupdate::vmm::state {
class VirtioConsole;
}

namespace liveupdate::vmm::virtio {

// Feature bits, 5.3.3.
inline constexpr uint64_t kConsoleEmergencyWrite = uint64_t{1} << 2;

inline constexpr uint64_t kConsoleEmergencyOffset = 8; // in the configuration space (5.3.4)

class ConsolePort final : public VirtioDevice, public ConsoleFrontend {
public:
    static constexpr const char* kSection = "virtio-console";
    static constexpr uint32_t kStateVersion = 1;
    static constexpr uint32_t kOldestLoadable = 1;

    static constexpr size_t kInputCapacity = size_t{4} << 10;
    static constexpr size_t kOutputCapacity = size_t{16} << 10;

    // `console` outlives the device; the caller also makes the device known to it.
    ConsolePort(ConsoleBackend& console, const Place& place) : console_(console) { attach(place); }
    ~ConsolePort() override { shut(); }

    std::string_view name() const override { return "console0"; }
    StateDeclaration state() const override { return StateSchema{kSection, kStateVersion, kOldestLoadable}; }
    // Exact only while worker and console are on hold.
    Result<std::string> save() const override;
    Result<void> load(std::string_view bytes, uint32_t version) override;
    std::vector<CarriedFd> carried() override { return {}; }
    bool at_rest() const override { return true; }

    // ConsoleFrontend: for the console's loop.
    size_t peek_output(std::span<uint8_t> into) const override;
    void consume_output(size_t count) override;
    size_t receive_space() const override;
    size_t receive(std::span<const uint8_t> bytes) override;
    void reader_changed() override;
    uint64_t dropped_output() const override;

protected:
    // TransportUser.
    uint32_t device_id() const override { return 3; }
    uint64_t device_features() const override { return kConsoleEmergencyWrite; }
    std::vector<uint16_t> queue_limits() const override { return {256, 256}; }
    void read_config(uint64_t offset, std::span<uint8_t> into) const override;
    void write_config(uint64_t offset, std::span<const uint8_t> from) override;
    void activated() override {}
    void was_reset() override;
    void settle() override {}
    Result<void> open_back_end() override;

    // WorkerClient.
    void ready(uint64_t token) override;
    void look() override { receive_due_ = send_due_ = true; }
    void finish_round() override;
    Deadline wake_at() const override;

private:
    enum class Taken { kAll, kPart };

    void serve_receive(Queue& queue);
    void serve_send(Queue& queue);
    void fill(Queue& queue);
    Taken take(const Chain& chain);
    size_t put(std::span<const uint8_t> bytes);
    bool has_input() const;
    bool has_output() const;
    void call_worker() const;

    ConsoleBackend& console_;
    UniqueFd bell_; // rung for the worker by the console's loop

    mutable std::mutex mutex_;
    ByteQueue input_{kInputCapacity};
    ByteQueue output_{kOutputCapacity};
    uint64_t dropped_output_ = 0;
    bool output_full_ = false; // a transmit buffer waits for room in output_

    // The worker's, or whose who has it on hold.
    uint64_t taken_of_next_ = 0;
    bool receive_due_ = true;
    bool send_due_ = true;
    Chain chain_; // scratch
};

} // namespace liveupdate::vmm::virtio
