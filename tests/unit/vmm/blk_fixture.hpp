// A block device, its driver, and disks, for tests.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "handoff/base/fd.hpp"
#include "tests/unit/vmm/virtio_fixture.hpp"
#include "vmm/devices/virtio/blk.hpp"

namespace liveupdate::vmm::test {

inline constexpr uint64_t kSectors = 4096;
inline constexpr uint8_t kNotYet = 0xAA;

inline UniqueFd disk_file() {
    auto file = fd::memfd_create("disk", 0);
    REQUIRE(file);
    REQUIRE(::ftruncate(file->get(), kSectors * 512) == 0);
    return std::move(*file);
}

inline virtio::Blk::Config plain() {
    virtio::Blk::Config config;
    config.name = "disk0";
    config.capacity = kSectors;
    config.serial = "serial-of-the-disk";
    return config;
}

// The driver: request number n has its header, data and result at fixed places.
struct Driver {
    GuestRam& ram;
    DriverQueue queue{ram, 64, 0x2000, 0xa000, 0xb000};

    static uint64_t header_at(unsigned n) { return 0x40000 + 64 * n; }
    static uint64_t status_at(unsigned n) { return header_at(n) + 48; }
    static uint64_t data_at(unsigned n) { return 0x60000 + 0x2000 * n; }

    void offer(unsigned n, uint32_t type, uint64_t sector, uint32_t bytes, bool device_writes) {
        ram.put(header_at(n), virtio::blk::RequestHeader{type, 0, sector});
        ram.put(status_at(n), kNotYet);
        std::vector<Desc> parts{{header_at(n), 16, 0, 0}};
        if (bytes > 0)
            parts.push_back({data_at(n), bytes, static_cast<uint16_t>(device_writes ? kDescWrite : 0), 0});
        parts.push_back({status_at(n), 1, kDescWrite, 0});
        const auto head = static_cast<uint16_t>(3 * n % queue.size);
        queue.chain(head, parts);
        queue.offer(head);
    }
    void read(unsigned n, uint64_t sector, uint32_t bytes) {
        offer(n, virtio::blk::kRead, sector, bytes, true);
    }
    void write(unsigned n, uint64_t sector, uint32_t bytes, uint8_t fill) {
        std::fill_n(ram.at(data_at(n)), bytes, fill);
        offer(n, virtio::blk::kWrite, sector, bytes, false);
    }
    void range(unsigned n, uint32_t type, virtio::blk::Range range) {
        ram.put(data_at(n), range);
        offer(n, type, 0, sizeof range, false);
    }
    uint8_t status(unsigned n) { return std::atomic_ref(*ram.at(status_at(n))).load(); }
};

struct Disk {
    GuestRam& ram;
    FakeInterrupt interrupt;
    std::unique_ptr<virtio::Blk> device;

    Disk(GuestRam& guest, virtio::Blk::Config config, UniqueFd file,
        std::vector<virtio::ForeignRing> rings = {},
        virtio::FormerRings former = virtio::FormerRings::kCarried)
        : ram(guest) {
        std::optional<virtio::Blk::BackEnd> back_end;
        back_end.emplace();
        back_end->file = std::move(file);
        back_end->rings = std::move(rings);
        back_end->former_rings = former;
        device = std::make_unique<virtio::Blk>(
            virtio::VirtioDevice::Place{ram.memory(), interrupt}, std::move(config), std::move(back_end));
        REQUIRE(device->open());
    }
    void boot(Driver& driver, uint64_t own_features = virtio::blk::kFeatureFlush) {
        device->unhold();
        Registers registers{device->transport()};
        registers.agree(virtio::kRingFeatures | own_features);
        registers.set_up(0, driver.queue);
        registers.drive();
        REQUIRE(registers.status() == 15);
    }
    void kick() { device->transport().write(0x50, 4, 0); }
    void stop() {
        device->hold();
        REQUIRE(device->await_held(Deadline::after(std::chrono::seconds(10))));
    }
    // What the next process gets of the rings of this one.
    std::vector<virtio::ForeignRing> rings() {
        std::vector<virtio::ForeignRing> all;
        for (const auto& carried : device->carried()) {
            const auto id = static_cast<uint32_t>(std::stoul(carried.name.substr(11)));
            auto ring = virtio::ForeignRing::map(id, *fd::dup(carried.fd));
            REQUIRE_MESSAGE(ring.has_value(), (ring ? "" : ring.error().message));
            all.push_back(std::move(*ring));
        }
        return all;
    }
};

} // namespace liveupdate::vmm::test
