#include "vmm/devices/virtio/blk.hpp"

#include <fcntl.h>

#include <map>

#include "tests/unit/vmm/blk_fixture.hpp"

namespace liveupdate::vmm::test {
namespace {

using namespace virtio;

uint8_t run(Disk& disk, Driver& driver, unsigned n) {
    const auto before = driver.queue.used_index();
    disk.kick();
    REQUIRE(eventually([&] { return driver.queue.used_index() != before; }));
    return driver.status(n);
}

TEST_CASE("what a guest writes to a disk it reads again") {
    GuestRam ram;
    Driver driver{ram};
    UniqueFd file = disk_file();
    Disk disk(ram, plain(), *fd::dup(file.get()));
    disk.boot(driver);
    driver.write(0, 8, 4096, 0x11);
    CHECK(run(disk, driver, 0) == blk::kOk);
    driver.offer(1, blk::kFlush, 0, 0, false);
    CHECK(run(disk, driver, 1) == blk::kOk);
    driver.read(2, 8, 1024);
    CHECK(run(disk, driver, 2) == blk::kOk);
    CHECK(*ram.at(Driver::data_at(2)) == 0x11);
    CHECK(*ram.at(Driver::data_at(2) + 1023) == 0x11);
    CHECK(driver.queue.used_element(2) == std::array<uint32_t, 2>{6, 1025});
    CHECK(driver.queue.used_element(0)[1] == 1);
    uint8_t byte = 0;
    REQUIRE(::pread(file.get(), &byte, 1, 8 * 512 + 4095) == 1);
    CHECK(byte == 0x11);
    CHECK(eventually([&] { return disk.interrupt.raised > 0; }));

    driver.offer(3, blk::kGetId, 0, 20, true);
    CHECK(run(disk, driver, 3) == blk::kOk);
    CHECK(std::string(reinterpret_cast<char*>(ram.at(Driver::data_at(3)))) == "serial-of-the-disk");
}

TEST_CASE("discarded and zeroed sectors read as zeroes") {
    GuestRam ram;
    Driver driver{ram};
    Disk disk(ram, plain(), disk_file());
    disk.boot(driver, blk::kFeatureFlush | blk::kFeatureDiscard | blk::kFeatureWriteZeroes);
    for (const uint32_t type : {blk::kDiscard, blk::kWriteZeroes}) {
        driver.write(0, 0, 8192, 0x22);
        CHECK(run(disk, driver, 0) == blk::kOk);
        driver.range(1, type, {8, 8, 0});
        CHECK(run(disk, driver, 1) == blk::kOk);
        driver.read(2, 0, 8192);
        CHECK(run(disk, driver, 2) == blk::kOk);
        CHECK(*ram.at(Driver::data_at(2) + 4095) == 0x22);
        CHECK(*ram.at(Driver::data_at(2) + 4096) == 0);
        CHECK(*ram.at(Driver::data_at(2) + 8191) == 0);
    }
    // More than one vector of zeroes.
    driver.range(3, blk::kWriteZeroes, {0, kSectors, blk::kUnmap});
    CHECK(run(disk, driver, 3) == blk::kOk);
}

TEST_CASE("requests that cannot be are answered with an error, and the device goes on") {
    GuestRam ram;
    Driver driver{ram};
    Disk disk(ram, plain(), disk_file());
    disk.boot(driver);
    driver.read(0, kSectors, 512);
    CHECK(run(disk, driver, 0) == blk::kIoError);
    driver.write(1, kSectors - 1, 1024, 1);
    CHECK(run(disk, driver, 1) == blk::kIoError);
    driver.read(2, UINT64_MAX, 512);
    CHECK(run(disk, driver, 2) == blk::kIoError);
    driver.read(3, 0, 100);
    CHECK(run(disk, driver, 3) == blk::kIoError);
    driver.offer(4, 77, 0, 512, true);
    CHECK(run(disk, driver, 4) == blk::kUnsupported);
    driver.range(5, blk::kDiscard, {0, UINT32_MAX, 0});
    CHECK(run(disk, driver, 5) == blk::kIoError);
    driver.range(6, blk::kDiscard, {UINT64_MAX - 1, 8, 0});
    CHECK(run(disk, driver, 6) == blk::kIoError);
    driver.range(7, blk::kDiscard, {0, 8, 0x80});
    CHECK(run(disk, driver, 7) == blk::kUnsupported);
    driver.read(8, kSectors - 1, 512);
    CHECK(run(disk, driver, 8) == blk::kOk);
}

TEST_CASE("a read-only disk is not written to") {
    GuestRam ram;
    Driver driver{ram};
    auto config = plain();
    config.read_only = true;
    UniqueFd file = disk_file();
    Disk disk(ram, config, *fd::dup(file.get()));
    disk.boot(driver, blk::kFeatureReadOnly | blk::kFeatureFlush);
    driver.write(0, 0, 512, 0x33);
    CHECK(run(disk, driver, 0) == blk::kIoError);
    driver.range(1, blk::kWriteZeroes, {0, 8, 0});
    CHECK(run(disk, driver, 1) == blk::kIoError);
    driver.read(2, 0, 512);
    CHECK(run(disk, driver, 2) == blk::kOk);
    uint8_t byte = 1;
    REQUIRE(::pread(file.get(), &byte, 1, 0) == 1);
    CHECK(byte == 0);
}

TEST_CASE("buffers that direct I/O does not take go through memory of the device's own") {
    char path[] = "/tmp/liveupdate-disk-XXXXXX";
    const UniqueFd buffered(::mkostemp(path, O_CLOEXEC));
    REQUIRE(buffered);
    const UniqueFd direct(::open(path, O_RDWR | O_DIRECT | O_CLOEXEC));
    ::unlink(path);
    if (!direct) {
        MESSAGE("SKIPPED: /tmp knows no O_DIRECT");
        return;
    }
    REQUIRE(::ftruncate(buffered.get(), kSectors * 512) == 0);
    GuestRam ram;
    Driver driver{ram};
    auto config = plain();
    config.block_size = 4096;
    Disk disk(ram, config, *fd::dup(direct.get()));
    disk.boot(driver);
    constexpr uint32_t kBytes = 256 << 10; // four parts
    constexpr uint64_t kOdd = 0xa0001;
    const auto offer = [&](unsigned n, uint32_t type, uint16_t flags) {
        ram.put(Driver::header_at(n), blk::RequestHeader{type, 0, 8});
        driver.queue.chain(
            0, {{Driver::header_at(n), 16, 0, 0}, {kOdd, 5000, flags, 0},
                   {kOdd + 5000, kBytes - 5000, flags, 0}, {Driver::status_at(n), 1, kDescWrite, 0}});
        driver.queue.offer(0);
    };
    for (uint32_t i = 0; i < kBytes; ++i)
        *ram.at(kOdd + i) = static_cast<uint8_t>(i * 7 + (i >> 12));
    offer(0, blk::kWrite, 0);
    CHECK(run(disk, driver, 0) == blk::kOk);
    std::vector<uint8_t> content(kBytes);
    REQUIRE(::pread(buffered.get(), content.data(), kBytes, 8 * 512) == kBytes);
    CHECK(std::equal(content.begin(), content.end(), ram.at(kOdd)));
    std::fill_n(ram.at(kOdd), kBytes, uint8_t{0});
    offer(1, blk::kRead, kDescWrite);
    CHECK(run(disk, driver, 1) == blk::kOk);
    CHECK(std::equal(content.begin(), content.end(), ram.at(kOdd)));
}

TEST_CASE("a buffer without a place for the result breaks the ring") {
    GuestRam ram;
    Driver driver{ram};
    Disk disk(ram, plain(), disk_file());
    disk.boot(driver);
    driver.queue.chain(0, {{Driver::header_at(0), 16, 0, 0}});
    driver.queue.offer(0);
    disk.kick();
    CHECK(eventually([&] { return disk.device->transport().failed(); }));
}

// A pipe as a disk: reads stay in flight until somebody writes into it.
struct SlowDisk {
    UniqueFd out;
    UniqueFd in;
    SlowDisk() {
        int ends[2];
        REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
        out.reset(ends[0]);
        in.reset(ends[1]);
    }
    void answer(size_t bytes) {
        const std::string data(bytes, 'x');
        REQUIRE(::write(in.get(), data.data(), bytes) == static_cast<ssize_t>(bytes));
    }
};

// Counts that each of `count` requests has come back exactly once.
void check_each_once(Driver& driver, unsigned count) {
    REQUIRE(eventually([&] { return driver.queue.used_index() >= count; }));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(driver.queue.used_index() == count);
    std::map<uint32_t, int> heads;
    for (uint16_t i = 0; i < count; ++i)
        ++heads[driver.queue.used_element(i)[0]];
    CHECK(heads.size() == count);
    for (unsigned n = 0; n < count; ++n) {
        CHECK(driver.status(n) == blk::kOk);
        CHECK(*driver.ram.at(Driver::data_at(n)) == 'x');
    }
}

TEST_CASE("requests in flight are carried: the next process takes their completions from the ring") {
    GuestRam ram;
    Driver driver{ram};
    SlowDisk slow;
    constexpr unsigned kCount = 8;
    Disk from(ram, plain(), *fd::dup(slow.out.get()));
    from.boot(driver);
    for (unsigned n = 0; n < kCount; ++n)
        driver.read(n, 8 * n, 512);
    from.kick();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    from.stop(); // waits for nothing
    CHECK(driver.queue.used_index() == 0);
    const std::string saved = *from.device->save();

    Disk to(ram, plain(), *fd::dup(slow.out.get()), from.rings());
    const auto loaded = to.device->load(saved, Blk::kStateVersion);
    REQUIRE_MESSAGE(loaded.has_value(), (loaded ? "" : loaded.error().message));
    CHECK_FALSE(from.device->at_rest());
    to.device->unhold();
    slow.answer(512 * kCount);
    check_each_once(driver, kCount);
    CHECK(eventually([&] { return from.device->at_rest(); }));
    CHECK(to.device->carried().size() == 1); // the other's ring is done with
}

TEST_CASE("requests whose process dies before they end are carried out by the next one") {
    GuestRam ram;
    Driver driver{ram};
    SlowDisk slow;
    constexpr unsigned kCount = 8;
    auto from = std::make_unique<Disk>(ram, plain(), *fd::dup(slow.out.get()));
    from->boot(driver);
    for (unsigned n = 0; n < kCount; ++n)
        driver.read(n, 8 * n, 512);
    from->kick();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    from->stop();
    const std::string saved = *from->device->save();
    Disk to(ram, plain(), *fd::dup(slow.out.get()), from->rings());
    REQUIRE(to.device->load(saved, Blk::kStateVersion));
    from.reset(); // its thread and its hold on the ring are gone
    to.device->unhold();
    slow.answer(512 * kCount);
    check_each_once(driver, kCount);
}

TEST_CASE("requests of a guest that comes out of a file are begun again") {
    GuestRam ram;
    Driver driver{ram};
    SlowDisk slow;
    constexpr unsigned kCount = 8;
    auto from = std::make_unique<Disk>(ram, plain(), *fd::dup(slow.out.get()));
    from->boot(driver);
    for (unsigned n = 0; n < kCount; ++n)
        driver.read(n, 8 * n, 512);
    from->kick();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    from->stop();
    const std::string saved = *from->device->save();
    from.reset(); // no ring is left
    Disk to(ram, plain(), *fd::dup(slow.out.get()), {}, FormerRings::kGone);
    const auto loaded = to.device->load(saved, Blk::kStateVersion);
    REQUIRE_MESSAGE(loaded.has_value(), (loaded ? "" : loaded.error().message));
    to.device->unhold();
    slow.answer(512 * kCount);
    check_each_once(driver, kCount);
    CHECK(eventually([&] { return to.device->carried().size() == 1; })); // its own
}

TEST_CASE("requests are carried over several updates, each from the ring it is in") {
    GuestRam ram;
    Driver driver{ram};
    SlowDisk slow;
    std::vector<std::unique_ptr<Disk>> disks;
    disks.push_back(std::make_unique<Disk>(ram, plain(), *fd::dup(slow.out.get())));
    disks.back()->boot(driver);
    constexpr unsigned kUpdates = 4;
    for (unsigned update = 0; update < kUpdates; ++update) {
        for (unsigned n = 3 * update; n < 3 * update + 3; ++n)
            driver.read(n, 8 * n, 512);
        disks.back()->kick();
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        disks.back()->stop();
        const std::string saved = *disks.back()->device->save();
        auto next = std::make_unique<Disk>(ram, plain(), *fd::dup(slow.out.get()), disks.back()->rings());
        REQUIRE(next->device->load(saved, Blk::kStateVersion));
        next->device->unhold();
        disks.push_back(std::move(next));
    }
    CHECK(disks.back()->device->carried().size() == kUpdates + 1);
    slow.answer(512 * 3 * kUpdates);
    check_each_once(driver, 3 * kUpdates);
}

TEST_CASE("a source that takes the guest back goes on with its own requests") {
    GuestRam ram;
    Driver driver{ram};
    SlowDisk slow;
    Disk disk(ram, plain(), *fd::dup(slow.out.get()));
    disk.boot(driver);
    driver.read(0, 0, 512);
    disk.kick();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    disk.stop();
    driver.read(1, 8, 512);
    disk.kick();
    slow.answer(1024);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(driver.queue.used_index() == 0);
    disk.device->unhold();
    check_each_once(driver, 2);
}

TEST_CASE("a reset lets results go nowhere, in this process and in the next") {
    GuestRam ram;
    Driver driver{ram};
    SlowDisk slow;
    Disk from(ram, plain(), *fd::dup(slow.out.get()));
    from.boot(driver);
    driver.read(0, 0, 512);
    from.kick();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    from.device->hold(); // or the reset would wait for the request
    from.device->transport().write(0x70, 4, 0);
    const std::string saved = *from.device->save();
    Disk to(ram, plain(), *fd::dup(slow.out.get()), from.rings());
    REQUIRE(to.device->load(saved, Blk::kStateVersion));
    to.device->unhold();
    slow.answer(512);
    CHECK(eventually([&] { return to.device->carried().size() == 1; }));
    CHECK(driver.queue.used_index() == 0);
    CHECK(driver.status(0) == kNotYet);
}

TEST_CASE("a reset whose wait an update ends is waited for in the next process") {
    GuestRam ram;
    Driver driver{ram};
    SlowDisk slow;
    Disk from(ram, plain(), *fd::dup(slow.out.get()));
    from.boot(driver);
    driver.read(0, 0, 512);
    from.kick();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::thread resetter([&] { from.device->transport().write(0x70, 4, 0); });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    from.device->hold();
    resetter.join();
    Disk to(ram, plain(), *fd::dup(slow.out.get()), from.rings());
    REQUIRE(to.device->load(*from.device->save(), Blk::kStateVersion));
    std::atomic<bool> through{false};
    std::thread reader([&] {
        to.device->transport().read(0x70, 4);
        through = true;
    });
    to.device->unhold();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    CHECK_FALSE(through);
    slow.answer(512);
    CHECK(eventually([&] { return through.load(); }));
    reader.join();
}

TEST_CASE("carried requests that cannot be are refused, with a sentence") {
    GuestRam ram;
    Driver driver{ram};
    SlowDisk slow;
    Disk from(ram, plain(), *fd::dup(slow.out.get()));
    from.boot(driver);
    driver.read(0, 0, 512);
    driver.read(1, 0, 512);
    from.kick();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    from.stop();
    state::VirtioBlk good;
    REQUIRE(good.ParseFromString(*from.device->save()));
    REQUIRE(good.requests_size() == 2);
    Disk to(ram, plain(), *fd::dup(slow.out.get()), from.rings());
    REQUIRE(to.device->load(good.SerializeAsString(), 1));
    const std::vector<std::pair<std::function<void(state::VirtioBlkRequest&)>, const char*>> all{
        {[](auto& r) { r.set_ring(9); }, "did not come along"},
        {[](auto& r) { r.set_tag(256); }, "tag"},
        {[](auto& r) { r.set_queue(1); }, "queue"},
        {[](auto& r) { r.set_head(256); }, "head"},
        {[](auto& r) { r.set_type(8); }, "type"},
        {[](auto& r) { r.set_sector(kSectors + 1); }, "sector"},
        {[](auto& r) { r.set_length(kSectors * 512 + 1); }, "length"},
        {[](auto& r) { r.set_done(513); }, "done"},
        {[](auto& r) { r.set_status_gpa(GuestRam::kSize); }, "status_gpa"},
        {[&](auto& r) { r.set_tag(good.requests(1).tag()); }, "two with the tag"},
    };
    for (const auto& [change, word] : all) {
        auto bad = good;
        change(*bad.mutable_requests(0));
        const auto loaded = to.device->load(bad.SerializeAsString(), 1);
        CAPTURE(word);
        REQUIRE_FALSE(loaded);
        CHECK(loaded.error().message.find(word) != std::string::npos);
        CHECK(loaded.error().message.find("disk0") != std::string::npos);
    }
    const UniqueFd file = disk_file();
    const auto none = ForeignRing::map(1, *fd::dup(file.get()));
    REQUIRE_FALSE(none);
    CHECK(none.error().message.find("is none") != std::string::npos);
}

} // namespace
} // namespace liveupdate::vmm::test
