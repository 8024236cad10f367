// What devices write to guest RAM, for whoever copies RAM under a guest that runs. KVM logs what vCPUs write.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

namespace liveupdate::vmm {

// note() on any thread, the rest on one. A write is noted after it has been made: what a copy that was begun
// before has missed comes with the next one.
class WriteLog {
public:
    // Of `pages` pages, by the caller's own count.
    void begin(uint64_t pages);
    void end() { on_.store(false, std::memory_order_release); }
    bool on() const { return on_.load(std::memory_order_acquire); }

    void note(uint64_t first_page, uint64_t pages) {
        for (uint64_t page = first_page; page < first_page + pages; ++page)
            words_[page / 64].fetch_or(uint64_t{1} << page % 64, std::memory_order_relaxed);
        std::atomic_thread_fence(std::memory_order_release);
    }
    // Calls `take` with each page that was noted since the last time.
    template <typename Take>
    void collect(Take take) {
        for (size_t i = 0; i < words_.size(); ++i) {
            if (words_[i].load(std::memory_order_relaxed) == 0) continue;
            uint64_t word = words_[i].exchange(0, std::memory_order_acq_rel);
            for (uint64_t bit = 0; word != 0; ++bit, word >>= 1)
                if ((word & 1) != 0) take(i * 64 + bit);
        }
    }

private:
    std::atomic<bool> on_{false};
    std::vector<std::atomic<uint64_t>> words_; // made once: note() may still be under way when it ends
};

inline void WriteLog::begin(uint64_t pages) {
    if (words_.empty()) words_ = std::vector<std::atomic<uint64_t>>((pages + 63) / 64);
    collect([](uint64_t) {});
    on_.store(true, std::memory_order_release);
}

} // namespace liveupdate::vmm
