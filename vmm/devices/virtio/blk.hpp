// A block device (virtio 1.2, section 5.2) over a file or a block device, through io_uring.
//
// One worker, one ring. Reads and writes go between the back end and guest RAM without a copy. An update does
// not wait for requests in flight: the kernel goes on with them, the next process takes their completions out
// of this one's ring. docs/io-across-the-switchover.md argues why none is lost, doubled or late.
//
//     available ring ──► slot ──► io_uring ──► used ring
//                         ▲          │ short, or failed in another process's ring: once more
//                         └──────────┘
#pragma once

#include <stdlib.h>

#include <array>
#include <atomic>
#include <deque>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "vmm/devices/virtio/blk.pb.h"
#include "vmm/devices/virtio/blk_protocol.hpp"
#include "vmm/devices/virtio/former_rings.hpp"
#include "vmm/devices/virtio/io_ring.hpp"
#include "vmm/devices/virtio/virtio_device.hpp"

namespace liveupdate::vmm::virtio {

class Blk final : public VirtioDevice {
public:
    static constexpr const char* kSection = "virtio-blk";
    static constexpr uint32_t kStateVersion = 1;
    static constexpr uint32_t kOldestLoadable = 1;

    static constexpr uint16_t kQueueSize = 256;
    static constexpr uint16_t kMaxQueues = 16;
    static constexpr size_t kMaxInFlight = kRingEntries; // of all rings together

    // What the guest sees; the same for every VMM of the guest.
    struct Config {
        std::string name;          // "disk0"
        uint32_t instance = 0;     // of its section
        uint16_t queues = 1;       // 1 to kMaxQueues
        uint64_t capacity = 0;     // sectors of 512 bytes
        uint32_t block_size = 512; // what requests are multiples of
        bool read_only = false;
        std::string serial; // at most 20 bytes
    };
    // What the device works on; absent in a rehearsal.
    struct BackEnd {
        UniqueFd file;                  // opened and locked by the supervisor
        std::vector<ForeignRing> rings; // of the processes before this one
        FormerRings former_rings = FormerRings::kCarried;
    };

    Blk(const Place& place, Config config, std::optional<BackEnd> back_end);
    ~Blk() override { shut(); }

    std::string_view name() const override { return config_.name; }
    StateDeclaration state() const override {
        return StateSchema{kSection, kStateVersion, kOldestLoadable, config_.instance};
    }
    Result<std::string> save() const override;
    Result<void> load(std::string_view bytes, uint32_t version) override;

    std::vector<CarriedFd> carried() override;
    bool at_rest() const override;

protected:
    uint32_t device_id() const override { return blk::kDeviceId; }
    uint64_t device_features() const override;
    std::vector<uint16_t> queue_limits() const override;
    void read_config(uint64_t offset, std::span<uint8_t> into) const override;
    void write_config(uint64_t, std::span<const uint8_t>) override {} // nothing there can be written
    void activated() override {}
    void was_reset() override;
    void settle() override;
    Result<void> open_back_end() override;

    void ready(uint64_t token) override;
    void look() override;
    void finish_round() override;
    Deadline wake_at() const override;

private:
    static constexpr uint64_t kRingToken = 0; // of our own; foreign ones have their id

    // What the guest waits for, as it crosses an update.
    struct Request {
        uint32_t queue = 0;
        uint16_t head = 0;
        uint32_t type = 0;
        uint64_t sector = 0;
        uint64_t length = 0;
        uint64_t done = 0;
        uint64_t status_gpa = 0;
        bool orphan = false;
        // Its buffers are not aligned as direct I/O wants it: it goes, part after part, through memory of the
        // process that carries it out. A read that ends in another process is begun again.
        bool bounced = false;
    };
    // One in our own ring. `data`: what is left to read or write.
    struct Slot {
        bool used = false;
        Request request;
        std::vector<iovec> data;
        iovec bounce{}; // when the request goes through memory of ours: the part of it that is in flight
    };
    // Loaded, and not yet given to a ring or to the foreign ring it is in.
    struct Carried {
        uint32_t ring = 0;
        uint32_t tag = 0;
        Request request;
    };
    struct Foreign {
        ForeignRing ring;
        std::map<uint32_t, Request> requests; // by tag
    };

    // Taking requests.
    void serve(size_t queue_index);
    void serve_all();
    bool watch_for_more();
    bool has_more();
    bool expect_kicks();
    bool accept(size_t queue_index, Chain& chain);
    uint8_t judge(Request& request, Chain& chain) const;
    uint8_t judge_range(Request& request, Chain& chain) const;
    bool in_range(uint64_t sector, uint64_t bytes) const;
    void get_id(const Chain& chain, const Request& request);

    // Carrying them out.
    void start(const Request& request, std::vector<iovec> data);
    void prepare(uint32_t slot);
    std::span<iovec> vectors_for(Slot& slot, uint32_t tag);
    void carry_out();
    void submit();
    unsigned reap();
    void completed(uint32_t slot, int result);
    static uint8_t judge_result(const Request& request, int result);
    void finish(const Request& request, uint8_t status);

    // Those of other processes.
    void settle_carried();
    void completed_elsewhere(const Request& request, int result);
    void restart(Request request);
    void drop_idle_rings();
    size_t in_flight() const;
    bool has_orphans() const;

    // State, in blk_state.cpp.
    Result<Carried> check_request(const state::VirtioBlkRequest& in) const;
    Result<void> check_requests(const state::VirtioBlk& in, std::vector<Carried>& out) const;

    const Config config_;
    UniqueFd file_;
    bool always_async_ = false; // the back end's file system blocks whoever submits
    bool zero_by_writing_ = false;
    std::unique_ptr<IoRing> ring_;
    uint32_t ring_id_ = 1;
    FormerRings former_rings_ = FormerRings::kCarried;
    uint32_t submitted_ = 0;        // to our ring, ever
    std::vector<Slot> slots_;       // by tag
    std::vector<uint32_t> free_;    // tags
    std::deque<uint32_t> prepared_; // tags, in the ring and not yet taken by the kernel
    std::list<Foreign> foreign_;
    std::vector<Carried> carried_;
    std::vector<uint8_t> touched_;       // queues that got a buffer back in this round
    bool starved_ = false;               // buffers wait for a slot
    std::atomic<size_t> pending_{0};     // in_flight(), for other threads
    std::atomic<bool> unsettled_{false}; // requests of before a reset are in flight, for other threads
    Chain chain_;
    std::unique_ptr<uint8_t, decltype(&::free)> bounce_{nullptr, &::free}; // a part for each slot
};

} // namespace liveupdate::vmm::virtio
