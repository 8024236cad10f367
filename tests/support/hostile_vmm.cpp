// A program that behaves as a VMM up to one point, named by what follows "hostile-" in its file name, and
// lies there. Without such a name it is honest but has no guest: it claims and offers batons like any other.
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "handoff/baton.hpp"
#include "handoff/channel.hpp"
#include "handoff/negotiation.hpp"
#include "handoff/transfer_area.hpp"
#include "vmm/reference_vmm.hpp"

namespace {

using namespace liveupdate;
using namespace liveupdate::handoff;
using proto::Message;

constexpr auto kSendTime = std::chrono::seconds(5);

class HostileVmm {
public:
    HostileVmm(std::string lie, int listening) : lie_(std::move(lie)), listening_(listening) {}

    int run() {
        for (;;) {
            channel_ = Channel(UniqueFd(::accept4(listening_, nullptr, nullptr, SOCK_CLOEXEC)));
            if (lies("closes-at-once")) return 0;
            for (;;) {
                auto received = channel_.receive(Deadline::never());
                if (!received) break;
                serve(*received);
            }
            if (!owner()) return 0;
        }
    }

private:
    bool lies(const char* how) const { return lie_ == how; }
    bool owner() const { return baton_ && baton_->held_by(me_); }
    [[noreturn]] static void hang() {
        for (;;)
            ::pause();
    }
    [[noreturn]] static void die(const char* words) {
        std::fprintf(stderr, "%s\n", words);
        ::_exit(3);
    }

    void send(Message message, const std::vector<FdToSend>& fds = {}) {
        static_cast<void>(channel_.send(std::move(message), fds, Deadline::after(kSendTime)));
    }
    void send_raw(const std::string& bytes, size_t fds = 0) {
        std::vector<int> copies(fds, STDERR_FILENO);
        std::vector<char> control(CMSG_SPACE(fds * sizeof(int)));
        iovec data{const_cast<char*>(bytes.data()), bytes.size()};
        msghdr header{};
        header.msg_iov = &data;
        header.msg_iovlen = 1;
        if (fds > 0) {
            header.msg_control = control.data();
            header.msg_controllen = control.size();
            cmsghdr* c = CMSG_FIRSTHDR(&header);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(fds * sizeof(int));
            std::memcpy(CMSG_DATA(c), copies.data(), fds * sizeof(int));
        }
        static_cast<void>(::sendmsg(channel_.fd(), &header, MSG_NOSIGNAL));
    }

    void serve(Received& received) {
        Message& m = received.message;
        switch (m.body_case()) {
        case Message::kHello:
            return hello();
        case Message::kLaunch:
            return launch(m.launch(), received.fds);
        case Message::kPrepare:
            return prepare(m.prepare(), received.fds);
        case Message::kLoadTrial:
            return load_trial();
        case Message::kArm:
            return arm();
        case Message::kDescribe:
            return describe();
        case Message::kSaveTrial:
            return save_trial(m.save_trial().sections(), received.fds);
        case Message::kSwitchover:
            return switchover();
        case Message::kQuery:
            return answer([](Message& a) { a.mutable_status(); });
        case Message::kAbandon:
            return answer([](Message& a) { a.mutable_abandoned(); });
        case Message::kStop:
            ::_exit(0);
        default:
            return;
        }
    }
    template <typename Fill>
    void answer(Fill fill) {
        Message message;
        fill(message);
        send(std::move(message));
    }

    void hello() {
        if (lies("speaks-garbage")) return send_raw("\xff\xfe this is no message at all \xff");
        if (lies("sends-an-empty-message")) return send(Message());
        if (lies("hangs")) hang();
        if (lies("dies-at-hello")) die("something is wrong with my configuration");
        if (lies("sends-100-fds")) return send_raw("x", 100);
        if (lies("sends-a-large-packet")) return send_raw(std::string(140'000, 'x'));
        if (lies("answers-wrongly")) return answer([](Message& a) { a.mutable_launched(); });
        if (lies("floods")) flood();
        Message message = offer();
        if (lies("misnames-fds")) {
            message.add_fd_names("one");
            message.add_fd_names("two");
            return send_raw(message.SerializeAsString(), 1);
        }
        if (lies("names-fds-twice")) {
            message.add_fd_names("one");
            message.add_fd_names("one");
            return send_raw(message.SerializeAsString(), 2);
        }
        send(std::move(message));
    }

    [[noreturn]] void flood() {
        for (;;)
            answer([](Message& a) { a.mutable_guest_event()->set_detail(std::string(60'000, 'x')); });
    }

    // What the real one offers, so that only the lie is wrong.
    Message offer() const {
        Message message;
        auto& o = *message.mutable_offer();
        o = vmm::ReferenceVmm("hostile").offer();
        o.set_oldest_protocol(kOldestProtocol);
        o.set_newest_protocol(kNewestProtocol);
        o.set_participant(owner() ? me_ : 0u);
        if (lies("offers-no-sections")) o.clear_loads();
        if (lies("speaks-newer-protocol")) {
            o.set_oldest_protocol(kNewestProtocol + 1);
            o.set_newest_protocol(kNewestProtocol + 4);
        }
        if (lies("speaks-older-protocol")) {
            o.set_oldest_protocol(0);
            o.set_newest_protocol(0);
        }
        if (lies("needs-a-capability")) o.add_required_capabilities("time-travel");
        if (lies("needs-newer-state")) {
            for (auto& support : *o.mutable_loads()) {
                support.set_oldest(77);
                support.set_newest(99);
            }
        }
        return message;
    }

    void launch(const proto::Launch& order, NamedFds& fds) {
        me_ = static_cast<Participant>(order.participant());
        if (!take_baton(fds) || !baton_->claim(me_)) die("no baton to claim");
        answer([](Message& a) { a.mutable_launched(); });
    }

    bool take_baton(NamedFds& fds) {
        auto fd = take_fd(fds, "baton");
        if (!fd) return false;
        auto baton = Baton::map(fd->get());
        if (baton) baton_.emplace(std::move(*baton));
        return baton_.has_value();
    }
    void take_area(const google::protobuf::RepeatedPtrField<proto::Section>& sections, NamedFds& fds) {
        auto fd = take_fd(fds, "transfer");
        if (!fd) return;
        auto area = TransferArea::map(fd->get(), sections_from(sections));
        if (area) area_.emplace(std::move(*area));
    }

    void prepare(const proto::Prepare& order, NamedFds& fds) {
        if (lies("dies-in-prepare")) die("the memory of this guest is too large for me");
        if (lies("hangs-in-prepare")) hang();
        if (lies("answers-prepare-wrongly")) return answer([](Message& a) { a.mutable_armed(); });
        if (lies("refuses-to-prepare"))
            return answer(
                [](Message& a) { a.mutable_failure()->set_message("no room for\n\x1b[2J this guest"); });
        me_ = static_cast<Participant>(order.participant());
        take_baton(fds);
        take_area(order.sections(), fds);
        answer([](Message& a) { a.mutable_prepared(); });
    }

    void load_trial() {
        if (lies("dies-in-the-trial")) die("this state makes no sense");
        if (lies("hangs-in-the-trial")) hang();
        if (lies("refuses-the-trial"))
            return answer([](Message& a) {
                a.mutable_failure()->set_code("refused");
                a.mutable_failure()->set_message("the trial state has a register that is out of range");
            });
        answer([](Message& a) { a.mutable_trial_loaded(); });
    }

    // As the destination of a switchover: the guest is never run here, so the baton must never stay here.
    void arm() {
        if (lies("refuses-to-arm"))
            return answer([](Message& a) { a.mutable_failure()->set_message("armed forces are on strike"); });
        answer([](Message& a) { a.mutable_armed(); });
        if (lies("dies-when-armed")) die("too much responsibility");
        if (lies("refuses-the-state") && area_) {
            area_->refuse("the real state has a register that is out of range");
            baton_->ring();
        }
        if (lies("says-committed"))
            answer([](Message& a) {
                a.mutable_switched()->set_committed(true);
                a.mutable_switched()->set_paused(true);
            });
        if (lies("never-takes-the-baton")) hang();
    }

    // As a source.
    void describe() {
        if (lies("hangs-at-describe")) hang();
        if (lies("describes-by-a-large-packet")) return send_raw(std::string(140'000, 'x'));
        if (lies("describes-wrongly")) return answer([](Message& a) { a.mutable_prepared(); });
        Message message;
        auto& d = *message.mutable_description();
        const auto real = vmm::ReferenceVmm("hostile").offer();
        for (const auto& support : real.saves())
            add_section(d, support.kind(), support.newest(), 4096);
        if (lies("describes-no-section")) d.clear_sections();
        if (lies("describes-many-sections"))
            for (uint32_t i = 1; i < 5000; ++i)
                add_section(d, "vcpu", 1, 1, i);
        if (lies("describes-huge-sections"))
            for (auto& section : *d.mutable_sections())
                section.set_capacity(1u << 31);
        if (lies("describes-a-section-twice")) add_section(d, "vcpu", real.saves(0).newest(), 4096);
        if (lies("describes-an-unknown-section")) add_section(d, "flux-capacitor", 1, 64);
        if (lies("describes-a-long-name")) add_section(d, std::string(300, 'n'), 1, 64);
        if (lies("describes-other-machine-fds")) return send(std::move(message), {{"kvm", STDERR_FILENO}});
        if (lies("describes-garbage")) d.set_fixed_state(std::string(1000, '\xff'));
        send(std::move(message));
    }
    static void add_section(proto::Description& d, const std::string& kind, uint32_t version,
        uint32_t capacity, uint32_t instance = 0) {
        auto* section = d.add_sections();
        section->set_kind(kind);
        section->set_instance(instance);
        section->set_version(version);
        section->set_capacity(capacity);
    }

    void save_trial(const google::protobuf::RepeatedPtrField<proto::Section>& sections, NamedFds& fds) {
        take_area(sections, fds);
        answer([](Message& a) { a.mutable_trial_saved()->set_pause_ns(~uint64_t{0}); });
    }
    void switchover() {
        answer([](Message& a) { a.mutable_switched()->set_committed(true); });
    }

    std::string lie_;
    int listening_;
    Channel channel_;
    Participant me_ = 0;
    std::optional<Baton> baton_;
    std::optional<TransferArea> area_;
};

} // namespace

int main(int argc, char** argv) {
    if (argc != 3 || std::strcmp(argv[1], "--session-fd") != 0) return 2;
    ::signal(SIGPIPE, SIG_IGN);
    const std::string path = argv[0];
    const std::string name = path.substr(path.rfind('/') + 1);
    const std::string prefix = "hostile-";
    const std::string lie = name.starts_with(prefix) ? name.substr(prefix.size()) : "";
    return HostileVmm(lie, std::atoi(argv[2])).run();
}
