#include "supervisor/cli/rollout.hpp"

#include <algorithm>
#include <atomic>
#include <thread>

namespace liveupdate::supervisor::cli {
namespace {

// One stage: [begin, end) with at most so many at once. False when one of them went wrong or was not begun.
class Stage {
public:
    Stage(size_t begin, size_t end, AfterFailure after, const RolloutHooks& hooks,
        std::vector<std::optional<ExitCode>>& codes)
        : next_(begin), end_(end), after_(after), hooks_(hooks), codes_(codes) {}

    bool run(size_t most_at_once) {
        std::vector<std::thread> threads;
        const size_t wanted = std::min(most_at_once, end_ - next_); // before the threads move next_ on
        for (size_t i = 0; i < wanted; ++i)
            threads.emplace_back([this] { work(); });
        for (auto& thread : threads)
            thread.join();
        return !failed_ && next_ >= end_;
    }

private:
    void work() {
        while (!hooks_.interrupted() && (after_ == AfterFailure::kGoOn || !failed_)) {
            const size_t index = next_++;
            if (index >= end_) return;
            const ExitCode code = hooks_.update(index);
            codes_[index] = code; // one thread for each element
            if (!went_well(code)) failed_ = true;
        }
    }

    std::atomic<size_t> next_;
    const size_t end_;
    const AfterFailure after_;
    const RolloutHooks& hooks_;
    std::vector<std::optional<ExitCode>>& codes_;
    std::atomic<bool> failed_ = false;
};

} // namespace

std::vector<std::optional<ExitCode>> run_rollout(
    size_t count, const RolloutOptions& options, const RolloutHooks& hooks) {
    std::vector<std::optional<ExitCode>> codes(count);
    const size_t canaries = std::min(options.canaries, count);
    if (Stage(0, canaries, AfterFailure::kStop, hooks, codes).run(options.most_at_once))
        Stage(canaries, count, options.after_failure, hooks, codes).run(options.most_at_once);
    return codes;
}

} // namespace liveupdate::supervisor::cli
