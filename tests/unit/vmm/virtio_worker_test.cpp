#include "vmm/devices/virtio/worker.hpp"

#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>

#include "handoff/base/fd.hpp"
#include "tests/support/temporary_folder.hpp"
#include "tests/unit/vmm/virtio_fixture.hpp"

namespace liveupdate::vmm::virtio::test {
namespace {

struct Rounds final : WorkerClient {
    std::atomic<int> looks{0};
    std::atomic<int> finished{0};
    std::atomic<int> readies{0};

    void ready(uint64_t) override { ++readies; }
    void look() override { ++looks; }
    void finish_round() override { ++finished; }
    Deadline wake_at() const override { return Deadline::never(); }
};

// A stop that a thread on its way to its parking place overlooks is a join without an end.
TEST_CASE("a worker that is held ends when it is told to, at whatever moment") {
    for (int round = 0; round < 20'000; ++round) {
        Rounds client;
        Worker worker(client);
        REQUIRE(worker.open());
        worker.start("held");
        for (int pause = 0; pause < round % 64 * 40; ++pause)
            std::atomic_signal_fence(std::memory_order_seq_cst);
        worker.stop();
        REQUIRE(client.finished == 0);
    }
}

TEST_CASE("a hold that begins and ends while a worker ends does not keep it") {
    for (int round = 0; round < 2'000; ++round) {
        Rounds client;
        Worker worker(client);
        REQUIRE(worker.open());
        worker.start("brief");
        worker.unhold(Worker::kUpdate);
        { const BriefHold held(worker, Worker::kRegisters); }
        worker.stop();
        REQUIRE(client.looks <= client.finished);
    }
}

TEST_CASE("each hold is followed by a look, also one that ends while a round is under way") {
    Rounds client;
    Worker worker(client);
    REQUIRE(worker.open());
    worker.start("looks");
    for (int round = 0; round < 20'000; ++round) {
        const int before = client.looks;
        worker.hold(Worker::kUpdate);
        worker.unhold(Worker::kUpdate);
        REQUIRE(vmm::test::eventually([&] { return client.looks > before; }));
    }
}

// How many epolls of this process watch `fd`.
int watches_of(int fd) {
    int found = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fdinfo")) {
        std::ifstream lines(entry.path());
        std::string word;
        int watched = -1;
        while (lines >> word)
            if (word == "tfd:" && lines >> watched && watched == fd) ++found;
    }
    return found;
}

TEST_CASE("what another process has open is watched only while no update holds the worker") {
    Rounds client;
    const UniqueFd shared = fd::eventfd(0).value();
    const uint64_t one = 1;
    Worker worker(client);
    REQUIRE(worker.open());
    REQUIRE(worker.watch_while_free(shared.get(), EPOLLIN | EPOLLET, 7));
    CHECK(watches_of(shared.get()) == 0);
    worker.start("shared");
    for (int round = 0; round < 100; ++round) {
        worker.unhold(Worker::kUpdate);
        REQUIRE(vmm::test::eventually([&] { return watches_of(shared.get()) == 1; }));
        { const BriefHold held(worker, Worker::kRegisters); }
        CHECK(watches_of(shared.get()) == 1);
        const int before = client.readies;
        REQUIRE(::write(shared.get(), &one, sizeof one) == sizeof one);
        REQUIRE(vmm::test::eventually([&] { return client.readies > before; }));
        // Wherever the worker is by then: an event finds it at the latest.
        worker.hold(Worker::kUpdate);
        REQUIRE(worker.await_held(Deadline::never()));
        REQUIRE(::write(shared.get(), &one, sizeof one) == sizeof one);
        REQUIRE(vmm::test::eventually([&] { return watches_of(shared.get()) == 0; }));
    }
}

TEST_CASE("what cannot be watched is told of before the worker starts") {
    Rounds client;
    const tests::TemporaryFolder folder;
    const UniqueFd file = fd::open(folder.at("file"), O_RDWR | O_CREAT, 0600).value(); // knows no events
    Worker worker(client);
    REQUIRE(worker.open());
    CHECK_FALSE(worker.watch_while_free(file.get(), EPOLLIN | EPOLLET, 7));
}

} // namespace
} // namespace liveupdate::vmm::virtio::test
