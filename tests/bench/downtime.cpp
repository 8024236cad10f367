// The guest's own downtime: the gap in its TSC that contains the switchover, read from its RAM from outside,
// beside its noise floor, the blackout's split, and what preparing and closing take from it.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <thread>

#include "tests/bench/gaps.hpp"
#include "tests/support/live_vm.hpp"

namespace {

using namespace liveupdate;
using namespace liveupdate::tests;
using ::tests::guests::GapRecord;
using ::tests::guests::read_field;

struct Settings {
    unsigned vcpus = 1;
    unsigned memory_mib = 256;
    unsigned updates = 100;
    bool rehearse = true;
    bool populate = true;
    bool fill = false; // all of RAM has pages before the first update
};

class Bench {
public:
    explicit Bench(Settings s) : s_(s) {}

    int run() {
        LiveVmOptions options;
        options.vcpus = s_.vcpus;
        options.memory_mib = s_.memory_mib;
        options.cmdline = "gap_us=50";
        options.witness = false;
        options.update_toml = std::string("probation = \"50ms\"\nrehearse = \"") +
                              (s_.rehearse ? "always" : "never") +
                              "\"\npopulate = " + (s_.populate ? "true" : "false") + "\n";
        auto started = LiveVm::start(options);
        if (!started) return fail(started.error());
        vm_ = std::move(*started);
        if (!vm_->guest_started()) return fail({ErrorCode::kTimeout, "the guest did not start"});
        khz_ = static_cast<double>(read_field(vm_->report().header.tsc_khz));
        if (s_.fill) fill();
        std::printf("%u vCPU, %u MiB%s, rehearse %s, populate %s, %u updates\n", s_.vcpus, s_.memory_mib,
            s_.fill ? " (all populated)" : "", s_.rehearse ? "always" : "never", s_.populate ? "on" : "off",
            s_.updates);
        noise_floor();
        for (unsigned i = 0; i < s_.updates; ++i)
            if (!one_update(i)) return 1;
        print();
        return 0;
    }

private:
    static int fail(const Error& error) {
        std::fprintf(stderr, "bench: %s\n", error.message.c_str());
        return 1;
    }

    // Touches every page beyond the guest's own image and report.
    void fill() {
        auto ram = vm_->ram();
        for (size_t at = size_t{32} << 20; at < ram.size(); at += 4096)
            ram[at] = std::byte{1};
    }

    double ms(uint64_t ticks) const { return static_cast<double>(ticks) / khz_; }

    void noise_floor() {
        for (int i = 0; i < 20; ++i) {
            const uint64_t from = guest_now(vm_->report());
            std::this_thread::sleep_for(std::chrono::milliseconds(150));
            double largest = 0, sum = 0;
            for (unsigned v = 0; v < s_.vcpus; ++v)
                for (const GapRecord& g : gaps_since(vm_->report(), v, from)) {
                    const double gap = ms(g.end_tsc - g.start_tsc);
                    largest = std::max(largest, gap);
                    if (gap > 0.1) sum += gap;
                }
            noise_.push_back(largest);
            noise_sum_.push_back(sum / s_.vcpus);
        }
    }

    bool one_update(unsigned i) {
        const uint64_t from = guest_now(vm_->report());
        auto record = vm_->update(program(i % 2 == 0 ? "liveupdate-vmm-next" : "liveupdate-vmm"));
        if (!record) return fail(record.error()) == 0;
        if (record->outcome != supervisor::Outcome::kCompleted)
            return fail({ErrorCode::kRefused, "update " + std::to_string(i) + ": " +
                                                  std::string(to_string(record->outcome)) + ": " +
                                                  record->reason}) == 0;
        const uint64_t at = record->guest_tsc_at_switchover.value_or(0);
        double longest = 0, sum = 0, before = 0, after = 0;
        for (unsigned v = 0; v < s_.vcpus; ++v)
            for (const GapRecord& g : gaps_since(vm_->report(), v, from)) {
                const double gap = ms(g.end_tsc - g.start_tsc);
                if (gap > 0.1) sum += gap;
                if (g.start_tsc > at || at > g.end_tsc || gap < longest) continue;
                longest = gap;
                before = ms(at - g.start_tsc);
                after = ms(g.end_tsc - at);
            }
        // From the request to stop to the take, as the VMMs stamped it: what comes on top of it is time for
        // which the guest's CPU was given to somebody else before.
        double asked = 0;
        for (const auto& part : record->blackout_split)
            if (part.name == "kick" || part.name == "stop" || part.name == "save" || part.name == "load")
                asked += static_cast<double>(part.us) / 1000;
        early_.push_back(std::max(0.0, before - asked));
        downtime_.push_back(longest);
        cold_.push_back(after);
        theft_.push_back(sum / s_.vcpus);
        operation_.push_back(static_cast<double>(record->duration_us) / 1000);
        if (record->rehearsal_pause_us)
            rehearsal_.push_back(static_cast<double>(*record->rehearsal_pause_us) / 1000);
        blackout_.push_back(static_cast<double>(record->blackout_us.value_or(0)) / 1000);
        for (const auto& part : record->blackout_split)
            split_[part.name].push_back(static_cast<double>(part.us));
        return true;
    }

    void print() const {
        print_row("guest's downtime", downtime_, "ms");
        print_row("  of it before the pause was asked", early_, "ms");
        print_row("  of it after the baton was taken", cold_, "ms");
        print_row("blackout, as the VMMs tell it", blackout_, "ms");
        for (const auto& [name, values] : split_)
            print_row("  " + name, values, "us");
        print_row("pause of the rehearsal", rehearsal_, "ms");
        print_row("noise: largest gap in 150 ms", noise_, "ms");
        print_row("noise: gaps over 100 us in 150 ms", noise_sum_, "ms");
        print_row("whole update: gaps over 100 us", theft_, "ms");
        print_row("whole update, probation included", operation_, "ms");
    }

    Settings s_;
    std::unique_ptr<LiveVm> vm_;
    double khz_ = 1;
    std::vector<double> noise_, noise_sum_, downtime_, early_, cold_, blackout_, theft_, rehearsal_,
        operation_;
    std::map<std::string, std::vector<double>> split_;
};

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"The guest's own downtime in an update"};
    Settings s;
    bool no_rehearsal = false, no_populate = false;
    app.add_option("--vcpus", s.vcpus);
    app.add_option("--memory", s.memory_mib, "MiB");
    app.add_option("--updates", s.updates);
    app.add_flag("--no-rehearsal", no_rehearsal);
    app.add_flag("--no-populate", no_populate);
    app.add_flag("--fill", s.fill, "Give every page of RAM a host page first");
    CLI11_PARSE(app, argc, argv);
    if (const std::string why = why_no_kvm(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return 0;
    }
    s.rehearse = !no_rehearsal;
    s.populate = !no_populate;
    return Bench(s).run();
}
