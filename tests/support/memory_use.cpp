#include "tests/support/memory_use.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/support/private_ram.hpp"

namespace liveupdate::tests {
namespace {

namespace fs = std::filesystem;

constexpr auto kEvery = std::chrono::milliseconds(10);

uint64_t mapped_by(pid_t pid) {
    return kib_of(pid, "smaps_rollup", "Pss") * 1024;
}

// "9:memory:/a/b" of the first version of cgroups, "0::/a/b" of the second.
std::string own_group() {
    std::ifstream file("/proc/self/cgroup");
    std::string unified;
    for (std::string line; std::getline(file, line);) {
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1),
                          path = line.substr(second + 1);
        if (controllers == "memory") return "/sys/fs/cgroup/memory" + path;
        if (controllers.empty()) unified = "/sys/fs/cgroup" + path;
    }
    return unified;
}

bool move_to(const std::string& group) {
    std::ofstream file(group + "/cgroup.procs");
    file << ::getpid() << std::flush;
    return file.good();
}

} // namespace

uint64_t kib_of(pid_t pid, const std::string& file, const std::string& key) {
    std::ifstream lines("/proc/" + std::to_string(pid) + "/" + file);
    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);
        std::string found;
        uint64_t kib = 0;
        if (words >> found >> kib && found == key + ":") return kib;
    }
    return 0;
}

MemoryGroup::MemoryGroup() {
    parent_ = own_group();
    const std::string folder = parent_ + "/liveupdate-test-" + std::to_string(::getpid());
    std::error_code problem;
    if (parent_.empty() || !fs::create_directory(folder, problem)) return;
    folder_ = folder;
    if (charged() && move_to(folder_)) return;
    fs::remove(folder_, problem);
    folder_.clear();
}

MemoryGroup::~MemoryGroup() {
    if (folder_.empty()) return;
    move_to(parent_);
    std::error_code problem;
    fs::remove(folder_, problem);
}

std::optional<uint64_t> MemoryGroup::charged() const {
    if (folder_.empty()) return std::nullopt;
    for (const char* name : {"/memory.usage_in_bytes", "/memory.current"}) {
        std::ifstream file(folder_ + name);
        if (uint64_t bytes = 0; file >> bytes) return bytes;
    }
    return std::nullopt;
}

bool MemoryGroup::limit(uint64_t bytes) const {
    if (folder_.empty() || !move_to(parent_)) return false;
    const auto put = [&](const char* name, uint64_t value) {
        std::ofstream file(folder_ + name);
        file << value << std::flush;
        return file.good();
    };
    const bool no_swap = put("/memory.swappiness", 0) || put("/memory.swap.max", 0);
    return no_swap && (put("/memory.limit_in_bytes", bytes) || put("/memory.max", bytes));
}

MemoryUse memory_use(pid_t supervisor, const MemoryGroup& group) {
    MemoryUse use;
    use.mapped = mapped_by(supervisor);
    for (const pid_t pid : children_of(supervisor))
        use.mapped += mapped_by(pid);
    use.charged = group.charged();
    return use;
}

MemoryWatch::MemoryWatch(pid_t supervisor, const MemoryGroup& group)
    : supervisor_(supervisor), group_(group), before_(memory_use(supervisor, group)), peak_(before_) {
    thread_ = std::thread([this] {
        while (!done_) {
            const MemoryUse now = memory_use(supervisor_, group_);
            peak_.mapped = std::max(peak_.mapped, now.mapped);
            peak_.charged = std::max(peak_.charged, now.charged);
            std::this_thread::sleep_for(kEvery);
        }
    });
}

MemoryUse MemoryWatch::stop() {
    done_ = true;
    if (thread_.joinable()) thread_.join();
    return peak_;
}

} // namespace liveupdate::tests
