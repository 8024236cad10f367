#include "tests/bench/meter.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <sstream>
#include <thread>
#include <vector>

#include "handoff/base/fd.hpp"

namespace liveupdate::tests {
namespace {

// Linux: Documentation/block/stat.rst.
uint64_t count_disk(const std::string& content, const std::string&) {
    std::istringstream numbers(content);
    std::array<uint64_t, 7> fields{};
    for (uint64_t& field : fields)
        numbers >> field;
    return 512 * (fields[2] + fields[6]);
}

// Lines "NAME: bytes, packets and 6 more of what was received, the same of what was sent".
uint64_t count_network(const std::string& content, const std::string& name, size_t field) {
    const auto line = content.find(name + ":");
    if (line == std::string::npos) return 0;
    std::istringstream numbers(content.substr(line + name.size() + 1));
    std::array<uint64_t, 10> fields{};
    for (uint64_t& each : fields)
        numbers >> each;
    return fields[field] + fields[8 + field];
}
uint64_t count_bytes(const std::string& content, const std::string& name) {
    return count_network(content, name, 0);
}
uint64_t count_packets(const std::string& content, const std::string& name) {
    return count_network(content, name, 1);
}

} // namespace

Result<Meter> Meter::of(const LoopDevice& disk) {
    TRY_ASSIGN(UniqueFd file, fd::open("/sys/block/" + disk.name() + "/stat", O_RDONLY));
    return Meter(std::move(file), disk.name(), count_disk);
}

Result<Meter> Meter::of_tap(const NetNamespace& network, Count how) {
    const NetNamespace::Stay stay(network); // the file goes on telling of the namespace it was opened in
    TRY_ASSIGN(UniqueFd file, fd::open("/proc/thread-self/net/dev", O_RDONLY));
    return Meter(std::move(file), network.tap(), how);
}

Result<Meter> Meter::of(const NetNamespace& network) {
    return of_tap(network, count_bytes);
}

Result<Meter> Meter::packets_of(const NetNamespace& network) {
    return of_tap(network, count_packets);
}

std::string Meter::content() const {
    std::array<char, 4096> bytes{};
    const ssize_t n = ::pread(file_.get(), bytes.data(), bytes.size(), 0);
    return n > 0 ? std::string(bytes.data(), static_cast<size_t>(n)) : std::string();
}

std::vector<double> rates(const Meter& meter, unsigned stretches, double seconds) {
    using Clock = std::chrono::steady_clock;
    std::vector<double> all;
    const auto step = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    auto due = Clock::now();
    auto from = due;
    uint64_t before = meter.count();
    for (unsigned i = 0; i < stretches; ++i) {
        std::this_thread::sleep_until(due += step);
        const auto now = Clock::now();
        const uint64_t counted = meter.count();
        const double passed = std::chrono::duration<double>(now - from).count();
        all.push_back(static_cast<double>(counted - before) / passed / 1e6);
        before = counted;
        from = now;
    }
    return all;
}

} // namespace liveupdate::tests
