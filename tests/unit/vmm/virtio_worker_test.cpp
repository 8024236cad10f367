#include "vmm/devices/virtio/worker.hpp"

#include <doctest/doctest.h>

#include <atomic>

#include "tests/unit/vmm/virtio_fixture.hpp"

namespace liveupdate::vmm::virtio::test {
namespace {

struct Rounds final : WorkerClient {
    std::atomic<int> looks{0};
    std::atomic<int> finished{0};

    void ready(uint64_t) override {}
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

} // namespace
} // namespace liveupdate::vmm::virtio::test
