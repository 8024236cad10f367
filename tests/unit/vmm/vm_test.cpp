// Needs /dev/kvm: a VM is made while signals come.
#include "vmm/kvm/vm.hpp"

#include <fcntl.h>
#include <pthread.h>

#include <chrono>
#include <csignal>
#include <thread>

#include <doctest/doctest.h>

#include "handoff/base/fd.hpp"

namespace liveupdate::vmm {
namespace {

TEST_CASE("signals do not keep a VM from being made") {
    auto kvm = fd::open("/dev/kvm", O_RDWR);
    if (!kvm) {
        MESSAGE("SKIPPED: /dev/kvm cannot be opened");
        return;
    }
    const auto system = KvmSystem::from(std::move(*kvm));
    REQUIRE(system);
    struct sigaction action {};
    struct sigaction before {};
    action.sa_handler = [](int) {};
    REQUIRE(::sigaction(SIGUSR1, &action, &before) == 0);
    {
        const std::jthread sender([target = ::pthread_self()](const std::stop_token& stop) {
            while (!stop.stop_requested()) {
                ::pthread_kill(target, SIGUSR1);
                std::this_thread::sleep_for(std::chrono::microseconds(30));
            }
        });
        for (int i = 0; i < 100; ++i) {
            const auto vm = Vm::create(*system);
            CHECK_MESSAGE(vm, vm.error().message);
        }
    }
    ::sigaction(SIGUSR1, &before, nullptr);
}

} // namespace
} // namespace liveupdate::vmm
