#include "tests/unit/handoff/session_driver.hpp"

#include <sys/socket.h>

#include <cstdlib>
#include <filesystem>

#include "handoff/base/fd.hpp"
#include "handoff/negotiation.hpp"
#include "handoff/session.hpp"
#include "tests/unit/handoff/support.hpp"

namespace liveupdate::handoff {
namespace {

constexpr uint64_t kRam = 64 * 1024;

const std::vector<SectionInfo> kSections = {{"counter", 0, 1, 64}, {"name", 0, 1, 64}};

class ScriptedGuest final : public SourceGuest {
public:
    ScriptedGuest(Script& script, int doorbell, Manifest manifest)
        : script_(script), doorbell_(doorbell), manifest_(std::move(manifest)) {}

    Result<GuestDescription> describe() override {
        if (script_.fail_describe) return Error(ErrorCode::kRefused, "the guest has ended");
        return GuestDescription{kSections, "fixed", {{"doorbell", doorbell_}}};
    }
    Result<void> save(Outgoing& out, Deadline) override {
        script_.saves.fetch_add(1);
        out.stamp_stopped();
        TRY_ASSIGN(const size_t counter, out.find("counter", 0));
        TRY(out.put(counter, std::to_string(script_.counter)));
        if (script_.fail_save) return Error(ErrorCode::kInternal, "the name could not be read");
        if (script_.save_too_little) return {};
        TRY_ASSIGN(const size_t name, out.find("name", 0));
        Result<void> put;
        std::thread([&] { put = out.put(name, "guest"); }).join();
        return put;
    }
    void resume() override { script_.resumes.fetch_add(1); }
    void update_over() override { script_.updates_over.fetch_add(1); }
    Result<void> begin_write_log(WriteMap) override {
        return Error(ErrorCode::kUnsupported, "this guest's writes cannot be tracked");
    }
    Result<void> collect_writes() override {
        return Error(ErrorCode::kUnsupported, "this guest's writes cannot be tracked");
    }
    void let_go() override { script_.let_go.fetch_add(1); }
    proto::Status status() override {
        proto::Status status;
        status.set_exits(script_.counter);
        return status;
    }
    bool ask_to_end() override {
        script_.asked_to_end.fetch_add(1);
        return script_.listens;
    }
    const Manifest& manifest() const override { return manifest_; }
    std::vector<FdToSend> adoption_fds() const override { return {{"doorbell", doorbell_}}; }
    std::optional<proto::GuestEvent> take_event() override { return script_.take_event(); }
    void collect(std::vector<pollfd>& fds) override {
        while (script_.hold_session) {
            script_.session_held = true;
            std::this_thread::yield();
        }
        fds.push_back({doorbell_, POLLIN, 0});
    }
    void dispatch(const std::vector<pollfd>& fds) override {
        uint64_t count = 0;
        if (fds.at(0).revents == 0) return;
        if (::read(doorbell_, &count, sizeof(count)) > 0) script_.dispatches.fetch_add(1);
    }
    Deadline wake_at() const override { return Deadline::never(); }

private:
    Script& script_;
    int doorbell_;
    Manifest manifest_;
};

class ScriptedArrival final : public DestinationGuest {
public:
    ScriptedArrival(Script& script, int doorbell) : script_(script), doorbell_(doorbell) {}
    ~ScriptedArrival() override {
        if (thread_.joinable()) thread_.join();
    }

    Result<proto::Prepared> prepare(PrepareOrder order) override {
        if (script_.fail_prepare) return Error(ErrorCode::kRefused, "no room for this guest");
        if (order.sections.size() != kSections.size())
            return Error(ErrorCode::kRefused, "a section is missing");
        manifest_ = std::move(order.manifest);
        return proto::Prepared();
    }
    Result<void> rehearse(Incoming& in) override {
        if (script_.fail_rehearse) return Error(ErrorCode::kRefused, "the trial state is not to my taste");
        for (size_t i = 0; i < in.count(); ++i) {
            TRY(in.await(i));
            TRY(in.loaded(i));
        }
        return {};
    }
    Result<void> load(std::shared_ptr<Incoming> in) override {
        if (thread_.joinable()) return Error(ErrorCode::kInternal, "already loading");
        thread_ = std::thread([this, in] {
            while (script_.hold_load)
                std::this_thread::yield();
            const auto taken = load_all(*in);
            if (!taken) return in->refuse(taken.error());
            script_.takes.fetch_add(1);
            in->stamp_entered(1);
        });
        return {};
    }
    std::unique_ptr<SourceGuest> run() override {
        return std::make_unique<ScriptedGuest>(script_, doorbell_, std::move(manifest_));
    }

private:
    Result<void> load_all(Incoming& in) {
        TRY_ASSIGN(const size_t counter, in.find("counter", 0));
        TRY_ASSIGN(const size_t name, in.find("name", 0));
        TRY_ASSIGN(const std::string value, in.await(counter));
        TRY(in.await(name));
        if (script_.fail_load) return Error(ErrorCode::kRefused, "the counter is odd");
        script_.counter = std::strtoull(value.c_str(), nullptr, 10);
        TRY(in.loaded(counter));
        TRY_ASSIGN(const bool taken, in.loaded(name));
        if (!taken) return Error(ErrorCode::kInternal, "the last section did not take the baton");
        return {};
    }

    Script& script_;
    int doorbell_;
    Manifest manifest_;
    std::thread thread_;
};

} // namespace

void Script::raise(proto::GuestEvent event) {
    const std::lock_guard lock(mutex_);
    event_ = std::move(event);
}

std::optional<proto::GuestEvent> Script::take_event() {
    const std::lock_guard lock(mutex_);
    return std::exchange(event_, std::nullopt);
}

ScriptedVmm::ScriptedVmm() : doorbell(must(fd::eventfd(0))) {}

proto::Offer ScriptedVmm::offer() const {
    proto::Offer offer;
    offer.set_implementation("scripted-vmm");
    for (const SectionInfo& section : kSections)
        for (auto* list : {offer.mutable_saves(), offer.mutable_loads()}) {
            auto* support = list->Add();
            support->set_kind(section.kind);
            support->set_oldest(1);
            support->set_newest(1);
        }
    return offer;
}

Result<std::unique_ptr<SourceGuest>> ScriptedVmm::launch(LaunchOrder order) {
    if (script.fail_launch) return Error(ErrorCode::kUnsupported, "this host has no room for guests");
    return std::unique_ptr<SourceGuest>(
        std::make_unique<ScriptedGuest>(script, doorbell.get(), std::move(order.manifest)));
}

std::unique_ptr<DestinationGuest> ScriptedVmm::destination() {
    return std::make_unique<ScriptedArrival>(script, doorbell.get());
}

GuestFilesForTest::GuestFilesForTest()
    : ram(must(create_ram_block("ram0", RamKind::kMemfd, kRam)).file),
      baton_fd(must(Baton::create_segment())), baton(must(Baton::map(baton_fd.get()))) {}

proto::Manifest GuestFilesForTest::manifest() const {
    proto::Manifest message;
    auto* block = message.add_blocks();
    block->set_name("ram0");
    block->set_kind(proto::RAM_KIND_MEMFD);
    block->set_size(kRam);
    auto* region = message.add_regions();
    region->set_size(kRam);
    region->set_block("ram0");
    return message;
}

std::vector<FdToSend> GuestFilesForTest::fds() const {
    return {{"ram0", ram.get()}, {"baton", baton_fd.get()}};
}

std::vector<FdToSend> GuestFilesForTest::fds_with(const UniqueFd& transfer) const {
    auto all = fds();
    all.push_back({"transfer", transfer.get()});
    return all;
}

SessionDriver::SessionDriver() {
    char path[] = "/tmp/liveupdate-test-XXXXXX";
    REQUIRE(::mkdtemp(path) != nullptr);
    folder_ = path;
    socket_ = folder_ + "/vmm.sock";
    UniqueFd listening = must(fd::unix_listen(socket_, SOCK_SEQPACKET, 4));
    thread_ = std::thread([this, socket = std::move(listening)]() mutable {
        VmmSession session(std::move(socket), vmm_);
        const auto status = session.run();
        status_ = status ? *status : -2;
    });
}

SessionDriver::~SessionDriver() {
    script().hold_session = false;
    script().hold_load = false;
    channel_.close();
    // A VMM with a guest waits for its next supervisor; one without has ended or is about to.
    if (auto socket = fd::unix_connect(socket_, SOCK_SEQPACKET)) {
        Channel last(std::move(socket).value());
        proto::Message stop;
        stop.mutable_stop();
        static_cast<void>(last.send(hello_message(), patience()));
        static_cast<void>(last.send(std::move(stop), patience()));
        thread_.join();
    } else {
        thread_.join();
    }
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
}

void SessionDriver::connect() {
    channel_ = Channel(must(fd::unix_connect(socket_, SOCK_SEQPACKET)));
}

void SessionDriver::send(proto::Message message, const std::vector<FdToSend>& fds) {
    must(channel_.send(std::move(message), fds, patience()));
}

proto::Message SessionDriver::receive() {
    return must(channel_.receive(patience())).message;
}

proto::Message SessionDriver::ask(proto::Message message, const std::vector<FdToSend>& fds) {
    send(std::move(message), fds);
    return receive();
}

std::string SessionDriver::refusal_of(proto::Message message, const std::vector<FdToSend>& fds) {
    const proto::Message answer = ask(std::move(message), fds);
    REQUIRE_MESSAGE(answer.has_failure(), kind_of(answer));
    CHECK_FALSE(answer.failure().code().empty());
    CHECK_FALSE(answer.failure().message().empty());
    return answer.failure().message();
}

proto::Offer SessionDriver::greet() {
    if (!channel_) connect();
    const proto::Message answer = ask(hello_message());
    REQUIRE_MESSAGE(answer.has_offer(), kind_of(answer));
    return answer.offer();
}

void SessionDriver::launch(const GuestFilesForTest& files, Participant me) {
    greet();
    const proto::Message answer = ask(launch_message(files, me), files.fds());
    REQUIRE_MESSAGE(answer.has_launched(), answer.failure().message());
}

int SessionDriver::exit_status() {
    REQUIRE(comes_true([this] { return status_ != -1; }));
    return status_;
}

proto::Message hello_message() {
    proto::Message message;
    message.mutable_hello()->set_oldest_protocol(kOldestProtocol);
    message.mutable_hello()->set_newest_protocol(kNewestProtocol);
    return message;
}

proto::Message launch_message(const GuestFilesForTest& files, Participant me) {
    proto::Message message;
    *message.mutable_launch()->mutable_manifest() = files.manifest();
    message.mutable_launch()->set_participant(me);
    return message;
}

std::vector<proto::Message> one_of_each_kind() {
    std::vector<proto::Message> all;
    const auto* body = proto::Message::descriptor()->FindOneofByName("body");
    for (int i = 0; i < body->field_count(); ++i) {
        proto::Message message;
        message.GetReflection()->MutableMessage(&message, body->field(i));
        all.push_back(std::move(message));
    }
    return all;
}

bool comes_true(const std::function<bool()>& condition) {
    const Deadline deadline = Deadline::after(std::chrono::seconds(20));
    while (!condition()) {
        if (deadline.passed()) return false;
        ::usleep(200);
    }
    return true;
}

} // namespace liveupdate::handoff
