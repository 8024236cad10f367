// counter-vmm: the smallest VMM that libhandoff can update. Its guest is a thread that counts in the first
// eight bytes of RAM; it needs no KVM. docs/embedding.md goes through this file.
#include <signal.h>
#include <sys/prctl.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "counter.pb.h"
#include "handoff/build_id.hpp"
#include "handoff/session.hpp"

#ifndef COUNTER_VMM_VERSION
#define COUNTER_VMM_VERSION "1.0"
#endif

namespace {

using namespace liveupdate;
using namespace liveupdate::handoff;

constexpr uint32_t kCounterVersion = 1;   // of the state section "counter"
constexpr uint32_t kCounterCapacity = 64; // bytes that it needs at most
constexpr auto kTick = std::chrono::microseconds(100);

// The guest's vCPU: one thread that counts up in guest RAM for as long as it is told to, and only while this
// process holds the baton.
class Vcpu {
public:
    Vcpu(SharedMapping ram, const Baton& baton, Participant me)
        : ram_(std::move(ram)), baton_(baton), me_(me) {}
    ~Vcpu() {
        give(Order::kQuit);
        if (thread_.joinable()) thread_.join();
    }

    // `arrive` runs first in the thread and says whether there is a guest to run.
    void start(std::function<bool()> arrive) {
        thread_ = std::thread([this, arrive = std::move(arrive)] {
            if (arrive()) main();
        });
    }
    void run() { give(Order::kRun); }
    // Returns once the thread has left the guest, which it does not enter again before run().
    void stop() {
        give(Order::kStop);
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return !inside_; });
    }

    uint64_t value() const { return counter().load(std::memory_order_relaxed); }
    uint64_t turns() const { return turns_.load(std::memory_order_relaxed); }

private:
    enum class Order { kRun, kStop, kQuit };

    std::atomic_ref<uint64_t> counter() const {
        return std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(ram_.data()));
    }
    void give(Order order) {
        const std::lock_guard lock(mutex_);
        order_ = order;
        changed_.notify_all();
    }
    // True: the thread is inside the guest now. False: it has to end.
    bool enter() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock,
            [this] { return order_ == Order::kQuit || (order_ == Order::kRun && baton_.held_by(me_)); });
        inside_ = order_ == Order::kRun;
        return inside_;
    }
    void leave() {
        const std::lock_guard lock(mutex_);
        inside_ = false;
        changed_.notify_all();
    }
    void main() {
        while (enter()) {
            counter().fetch_add(1, std::memory_order_relaxed); // the guest's code
            turns_.fetch_add(1, std::memory_order_relaxed);
            leave();
            std::this_thread::sleep_for(kTick);
        }
    }

    SharedMapping ram_;
    const Baton& baton_;
    const Participant me_;
    std::atomic<uint64_t> turns_{0};
    std::mutex mutex_;
    std::condition_variable changed_;
    Order order_ = Order::kRun;
    bool inside_ = false;
    std::thread thread_;
};

Result<SharedMapping> map_first_block(const Manifest& manifest, MapMode mode) {
    const RamBlock& block = manifest.blocks.front(); // a manifest has at least one
    return SharedMapping::map(block.file.get(), 0, block.size, mode);
}

// A guest that runs in this process, and may leave it.
class RunningCounter final : public SourceGuest {
public:
    RunningCounter(Manifest manifest, NamedFds fds, std::unique_ptr<Vcpu> vcpu)
        : manifest_(std::move(manifest)), fds_(std::move(fds)), vcpu_(std::move(vcpu)) {}

    Result<GuestDescription> describe() override {
        GuestDescription description;
        description.sections = {{"counter", 0, kCounterVersion, kCounterCapacity}};
        return description;
    }

    Result<void> save(Outgoing& out, Deadline) override {
        vcpu_->stop();
        out.stamp_stopped();
        counter::Counter state;
        state.set_value(vcpu_->value());
        TRY_ASSIGN(const size_t index, out.find("counter", 0));
        return out.put(index, state.SerializeAsString()); // the last section: offers the baton
    }

    void resume() override { vcpu_->run(); }
    void update_over() override {}
    Result<void> begin_write_log(handoff::WriteMap) override {
        return Error(ErrorCode::kUnsupported, "this guest's writes cannot be tracked");
    }
    Result<void> collect_writes() override {
        return Error(ErrorCode::kUnsupported, "this guest's writes cannot be tracked");
    }
    void let_go() override { vcpu_.reset(); }

    proto::Status status() override {
        proto::Status status;
        status.set_exits(vcpu_->turns());
        return status;
    }
    bool ask_to_end() override { return false; } // a counter has no power button
    const Manifest& manifest() const override { return manifest_; }
    std::vector<FdToSend> adoption_fds() const override {
        std::vector<FdToSend> fds;
        for (const auto& [name, fd] : fds_)
            fds.push_back({name, fd.get()});
        return fds;
    }
    std::optional<proto::GuestEvent> take_event() override { return std::nullopt; }

    // There is no device whose file descriptors the session would have to watch.
    void collect(std::vector<pollfd>&) override {}
    void dispatch(const std::vector<pollfd>&) override {}
    Deadline wake_at() const override { return Deadline::never(); }

private:
    Manifest manifest_;
    NamedFds fds_; // what came with the launch, kept for a supervisor that adopts this guest
    std::unique_ptr<Vcpu> vcpu_;
};

// Reads the section "counter" and compares it with what the guest wrote to RAM. Changes nothing.
Result<void> check_state(Incoming& in, size_t index, const SharedMapping& ram) {
    TRY_ASSIGN(const std::string bytes, in.await(index));
    counter::Counter state;
    if (!state.ParseFromString(bytes) || !state.GetReflection()->GetUnknownFields(state).empty())
        return Error(ErrorCode::kRefused, "state section 'counter' cannot be read");
    uint64_t in_ram = 0;
    std::memcpy(&in_ram, ram.data(), sizeof(in_ram));
    if (in.run() == TransferRun::kReal && state.value() != in_ram)
        return Error(ErrorCode::kRefused,
            "the counter is " + std::to_string(state.value()) + " and RAM says " + std::to_string(in_ram));
    return {};
}

// A guest that is about to come to this process.
class ArrivingCounter final : public DestinationGuest {
public:
    Result<proto::Prepared> prepare(PrepareOrder order) override {
        if (order.sections.size() != 1 || order.sections[0].name() != "counter/0")
            return Error(ErrorCode::kRefused, "a counter has the one state section 'counter/0' and no other");
        TRY_ASSIGN(SharedMapping ram, map_first_block(order.manifest, MapMode::kShared));
        if (order.populate) TRY(populate(ram, order.manifest.blocks.front(), 0));
        if (order.rehearse) {
            TRY_ASSIGN(trial_ram_, map_first_block(order.manifest, MapMode::kPrivate));
        }
        TRY_ASSIGN(ram_, map_first_block(order.manifest, MapMode::kReadOnly));
        vcpu_ = std::make_unique<Vcpu>(std::move(ram), *order.baton, order.me);
        manifest_ = std::move(order.manifest);
        fds_ = std::move(order.fds);
        return proto::Prepared();
    }

    Result<void> rehearse(Incoming& in) override {
        TRY_ASSIGN(const size_t index, in.find("counter", 0));
        TRY(check_state(in, index, trial_ram_));
        trial_ram_ = SharedMapping();
        return {};
    }

    Result<void> load(std::shared_ptr<Incoming> in) override {
        vcpu_->start([this, in] { return arrive(*in); });
        return {};
    }

    std::unique_ptr<SourceGuest> run() override {
        return std::make_unique<RunningCounter>(std::move(manifest_), std::move(fds_), std::move(vcpu_));
    }

private:
    // In the vCPU's thread: loads, takes the baton, and goes straight on into the guest.
    bool arrive(Incoming& in) {
        const auto taken = load_state(in);
        if (!taken) {
            in.refuse(taken.error());
            return false;
        }
        if (!*taken && !in.await_ownership()) return false;
        in.stamp_entered(1); // of one vCPU
        return true;
    }
    Result<bool> load_state(Incoming& in) {
        TRY_ASSIGN(const size_t index, in.find("counter", 0));
        TRY(check_state(in, index, ram_));
        return in.loaded(index); // the last section: takes the baton
    }

    Manifest manifest_;
    NamedFds fds_;
    SharedMapping ram_, trial_ram_;
    std::unique_ptr<Vcpu> vcpu_; // last: its thread uses the rest
};

class CounterVmm final : public Vmm {
public:
    proto::Offer offer() const override {
        proto::Offer offer;
        offer.set_implementation("counter-vmm");
        offer.set_version(COUNTER_VMM_VERSION);
        offer.set_build_id(own_build_id());
        offer.set_started_unix(started_);
        offer.add_capabilities("rehearse");
        for (auto* list : {offer.mutable_saves(), offer.mutable_loads()}) {
            auto* support = list->Add();
            support->set_kind("counter");
            support->set_oldest(kCounterVersion);
            support->set_newest(kCounterVersion);
        }
        return offer;
    }

    Result<std::unique_ptr<SourceGuest>> launch(LaunchOrder order) override {
        TRY_ASSIGN(SharedMapping ram, map_first_block(order.manifest, MapMode::kShared));
        auto vcpu = std::make_unique<Vcpu>(std::move(ram), *order.baton, order.me);
        vcpu->start([] { return true; });
        return std::unique_ptr<SourceGuest>(std::make_unique<RunningCounter>(
            std::move(order.manifest), std::move(order.fds), std::move(vcpu)));
    }

    std::unique_ptr<DestinationGuest> destination() override { return std::make_unique<ArrivingCounter>(); }

private:
    const uint64_t started_ = static_cast<uint64_t>(std::time(nullptr));
};

} // namespace

int main(int argc, char** argv) {
    if (argc == 2 && std::strcmp(argv[1], "--version") == 0) {
        std::printf("counter-vmm %s\nbuild-id %s\n", COUNTER_VMM_VERSION, own_build_id().c_str());
        return 0;
    }
    const int session_fd = argc == 3 && std::strcmp(argv[1], "--session-fd") == 0 ? std::atoi(argv[2]) : -1;
    if (session_fd < 3) {
        std::fputs(
            "usage: counter-vmm --session-fd N (an inherited listening SOCK_SEQPACKET socket)\n", stderr);
        return 2;
    }
    ::signal(SIGPIPE, SIG_IGN);
    ::signal(SIGHUP, SIG_IGN);
    ::prctl(PR_SET_NAME, "counter-vmm"); // also when it was started by file descriptor
    CounterVmm vmm;
    VmmSession session((UniqueFd(session_fd)), vmm);
    const auto status = session.run();
    if (!status) {
        std::fprintf(stderr, "counter-vmm: %s\n", status.error().message.c_str());
        return 1;
    }
    return *status;
}
