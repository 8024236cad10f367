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

// Lines "NAME: bytes and 7 more of what was received, bytes and 7 more of what was sent".
uint64_t count_network(const std::string& content, const std::string& name) {
    const auto line = content.find(name + ":");
    if (line == std::string::npos) return 0;
    std::istringstream numbers(content.substr(line + name.size() + 1));
    std::array<uint64_t, 9> fields{};
    for (uint64_t& field : fields)
        numbers >> field;
    return fields[0] + fields[8];
}

} // namespace

Result<Meter> Meter::of(const LoopDevice& disk) {
    TRY_ASSIGN(UniqueFd file, fd::open("/sys/block/" + disk.name() + "/stat", O_RDONLY));
    return Meter(std::move(file), disk.name(), count_disk);
}

Result<Meter> Meter::of(const NetNamespace& network) {
    const NetNamespace::Stay stay(network); // the file goes on telling of the namespace it was opened in
    TRY_ASSIGN(UniqueFd file, fd::open("/proc/thread-self/net/dev", O_RDONLY));
    return Meter(std::move(file), network.tap(), count_network);
}

std::string Meter::content() const {
    std::array<char, 4096> bytes{};
    const ssize_t n = ::pread(file_.get(), bytes.data(), bytes.size(), 0);
    return n > 0 ? std::string(bytes.data(), static_cast<size_t>(n)) : std::string();
}

std::vector<double> rates(const Meter& meter, unsigned count, double seconds) {
    using Clock = std::chrono::steady_clock;
    std::vector<double> all;
    const auto step = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    auto due = Clock::now();
    auto from = due;
    uint64_t before = meter.bytes();
    for (unsigned i = 0; i < count; ++i) {
        std::this_thread::sleep_until(due += step);
        const auto now = Clock::now();
        const uint64_t bytes = meter.bytes();
        const double passed = std::chrono::duration<double>(now - from).count();
        all.push_back(static_cast<double>(bytes - before) / passed / 1e6);
        before = bytes;
        from = now;
    }
    return all;
}

} // namespace liveupdate::tests
