#include "supervisor/cli/interrupt.hpp"

#include <atomic>

namespace liveupdate::supervisor::cli {
namespace {

// A signal handler can reach nothing else.
std::atomic<int> interrupts = 0;
static_assert(std::atomic<int>::is_always_lock_free);

void count_one(int) {
    ++interrupts;
}

} // namespace

InterruptGuard::InterruptGuard() {
    interrupts = 0;
    struct sigaction action {};
    action.sa_handler = count_one;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGINT, &action, &former_int_);
    ::sigaction(SIGTERM, &action, &former_term_);
}

InterruptGuard::~InterruptGuard() {
    ::sigaction(SIGINT, &former_int_, nullptr);
    ::sigaction(SIGTERM, &former_term_, nullptr);
}

int InterruptGuard::count() {
    return interrupts;
}

} // namespace liveupdate::supervisor::cli
