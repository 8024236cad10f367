// The block device: what it is, and how it takes requests. How they are carried out: blk_io.cpp.
#include "vmm/devices/virtio/blk.hpp"

#include <algorithm>
#include <cstring>
#include <thread>

namespace liveupdate::vmm::virtio {

using namespace blk;

namespace {

constexpr uint32_t kSegMax = 126; // a request's data buffers, beside header and status in a queue of 256
constexpr uint32_t kMaxRangeSectors = 16 << 20; // 8 GiB in one discard or write of zeroes
constexpr auto kLongestSettle = std::chrono::seconds(30);

} // namespace

Blk::Blk(const Place& place, Config config, std::optional<BackEnd> back_end)
    : config_(std::move(config)), slots_(kMaxInFlight) {
    for (uint32_t tag = kMaxInFlight; tag > 0; --tag)
        free_.push_back(tag - 1);
    if (back_end) {
        file_ = std::move(back_end->file);
        former_rings_ = back_end->former_rings;
        for (ForeignRing& ring : back_end->rings) {
            ring_id_ = std::max(ring_id_, ring.id() + 1);
            foreign_.push_back({std::move(ring), {}});
        }
    }
    touched_.resize(config_.queues);
    attach(place);
}

uint64_t Blk::device_features() const {
    uint64_t features = kFeatureSegMax | kFeatureBlockSize | kFeatureFlush | kFeatureMultiQueue;
    features |= config_.read_only ? kFeatureReadOnly : kFeatureDiscard | kFeatureWriteZeroes;
    return features;
}

std::vector<uint16_t> Blk::queue_limits() const {
    return std::vector<uint16_t>(config_.queues, kQueueSize);
}

void Blk::read_config(uint64_t offset, std::span<uint8_t> into) const {
    blk::Config config{};
    config.capacity = config_.capacity;
    config.seg_max = kSegMax;
    config.block_size = config_.block_size;
    config.queues = config_.queues;
    config.max_discard_sectors = config.max_write_zeroes_sectors = kMaxRangeSectors;
    config.max_discard_segments = config.max_write_zeroes_segments = 1;
    config.discard_sector_alignment = config_.block_size / kSectorBytes;
    config.write_zeroes_may_unmap = 1;
    const auto* bytes = reinterpret_cast<const uint8_t*>(&config);
    std::fill(into.begin(), into.end(), uint8_t{0});
    if (offset >= sizeof config) return;
    std::copy_n(bytes + offset, std::min<uint64_t>(into.size(), sizeof config - offset), into.begin());
}

void Blk::was_reset() {
    for (Slot& slot : slots_)
        slot.request.orphan = true;
    for (Foreign& foreign : foreign_)
        for (auto& [tag, request] : foreign.requests)
            request.orphan = true;
    std::erase_if(carried_, [](const Carried& carried) { return carried.ring == 0; });
    for (Carried& carried : carried_)
        carried.request.orphan = true;
    starved_ = false;
    unsettled_.store(has_orphans());
}

// The kernel may still put what a read has found into the guest's RAM.
void Blk::settle() {
    const Deadline longest = Deadline::after(kLongestSettle);
    while (unsettled_.load() && !pausing() && !longest.passed())
        std::this_thread::sleep_for(std::chrono::microseconds(100));
}

bool Blk::has_orphans() const {
    const auto orphan_of = [](const auto& foreign) {
        return std::any_of(foreign.requests.begin(), foreign.requests.end(),
            [](const auto& each) { return each.second.orphan; });
    };
    return std::any_of(slots_.begin(), slots_.end(),
               [](const Slot& slot) { return slot.used && slot.request.orphan; }) ||
           std::any_of(foreign_.begin(), foreign_.end(), orphan_of) ||
           std::any_of(carried_.begin(), carried_.end(),
               [](const Carried& carried) { return carried.request.orphan; });
}

void Blk::serve(size_t index) {
    Queue* queue = transport().queue(index);
    if (queue == nullptr) return;
    queue->suppress_kicks();         // until the end of the round
    while (!worker().must_yield()) { // or the next round goes on
        if (in_flight() >= kMaxInFlight) {
            starved_ = true;
            return;
        }
        const auto popped = queue->pop(chain_);
        if (!popped) return transport().fail();
        if (!*popped) return;
        if (!accept(index, chain_)) return transport().fail();
    }
}

void Blk::serve_all() {
    starved_ = false;
    for (size_t i = 0; i < transport().queue_count(); ++i)
        serve(i);
}

// False: not even a place for the result is there, so the ring is broken.
bool Blk::accept(size_t index, Chain& chain) {
    RequestHeader header{};
    std::array<uint8_t, sizeof header> bytes{};
    if (chain.writable_bytes == 0 || !take_front(chain.readable, bytes)) return false;
    std::memcpy(&header, bytes.data(), sizeof header);
    Request request;
    request.queue = static_cast<uint32_t>(index);
    request.head = chain.head;
    request.type = header.type;
    request.sector = header.sector;
    chain.readable_bytes -= sizeof header;
    --chain.writable_bytes; // the last byte is the result's
    Segment& last = chain.writable.back();
    request.status_gpa = last.gpa + last.bytes.size() - 1;
    last.bytes = last.bytes.first(last.bytes.size() - 1);
    if (last.bytes.empty()) chain.writable.pop_back();

    if (request.type == kGetId) {
        get_id(chain, request);
        return true;
    }
    const uint8_t verdict = judge(request, chain);
    if (verdict != kOk) {
        finish(request, verdict);
        return true;
    }
    std::vector<iovec> data;
    if (request.type == kRead || request.type == kWrite)
        for (const Segment& segment : request.type == kRead ? chain.writable : chain.readable)
            data.push_back({segment.bytes.data(), segment.bytes.size()});
    start(request, std::move(data));
    return true;
}

bool Blk::in_range(uint64_t sector, uint64_t bytes) const {
    const uint64_t block = config_.block_size / kSectorBytes;
    return bytes % config_.block_size == 0 && sector % block == 0 && sector <= config_.capacity &&
           bytes / kSectorBytes <= config_.capacity - sector;
}

uint8_t Blk::judge(Request& request, Chain& chain) const {
    switch (request.type) {
    case kRead:
        request.length = chain.writable_bytes;
        return request.length > 0 && in_range(request.sector, request.length) ? kOk : kIoError;
    case kWrite:
        request.length = chain.readable_bytes;
        if (config_.read_only) return kIoError;
        return request.length > 0 && in_range(request.sector, request.length) ? kOk : kIoError;
    case kFlush:
        return kOk;
    case kDiscard:
    case kWriteZeroes:
        return config_.read_only ? kIoError : judge_range(request, chain);
    default:
        return kUnsupported;
    }
}

uint8_t Blk::judge_range(Request& request, Chain& chain) const {
    Range range{};
    std::array<uint8_t, sizeof range> bytes{};
    if (chain.readable_bytes != sizeof range || !take_front(chain.readable, bytes)) return kIoError;
    std::memcpy(&range, bytes.data(), sizeof range);
    const uint32_t allowed = request.type == kWriteZeroes ? kUnmap : 0;
    if ((range.flags & ~allowed) != 0) return kUnsupported;
    request.sector = range.sector;
    request.length = uint64_t{range.sectors} * kSectorBytes;
    const bool good = range.sectors > 0 && range.sectors <= kMaxRangeSectors;
    return good && in_range(request.sector, request.length) ? kOk : kIoError;
}

void Blk::get_id(const Chain& chain, const Request& request) {
    std::array<uint8_t, kIdBytes> id{};
    std::copy_n(config_.serial.begin(), std::min(config_.serial.size(), id.size()), id.begin());
    finish(request, write_front(chain.writable, id) == id.size() ? kOk : kIoError);
}

std::vector<VirtioDevice::CarriedFd> Blk::carried() {
    const BriefHold hold(worker(), Worker::kLook);
    std::vector<CarriedFd> fds;
    const auto add = [&](uint32_t id, int fd) {
        fds.push_back({config_.name + "-ring-" + std::to_string(id), fd});
    };
    if (ring_) add(ring_id_, ring_->fd());
    for (const Foreign& foreign : foreign_)
        add(foreign.ring.id(), foreign.ring.fd());
    return fds;
}

bool Blk::at_rest() const {
    return !ring_ || ring_->completed() == submitted_;
}

} // namespace liveupdate::vmm::virtio
