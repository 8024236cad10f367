#include "tests/linux/guest/queues.hpp"

#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/ethtool.h>
#include <linux/sockios.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "tests/linux/guest/report.hpp"

namespace linux_guest {
namespace {

// One question of ethtool: its answer lies in the same memory.
bool ask(int socket, const std::string& interface, void* question) {
    ifreq request{};
    std::strncpy(request.ifr_name, interface.c_str(), IFNAMSIZ - 1);
    request.ifr_data = static_cast<char*>(question);
    return ::ioctl(socket, SIOCETHTOOL, &request) == 0;
}

std::vector<std::uint64_t> room_for(std::size_t header, std::size_t count, std::size_t each) {
    return std::vector<std::uint64_t>((header + count * each) / 8 + 1);
}

std::string packets(int socket, const std::string& interface) {
    ethtool_drvinfo driver{};
    driver.cmd = ETHTOOL_GDRVINFO;
    if (!ask(socket, interface, &driver)) return {};
    const std::uint32_t count = driver.n_stats;
    auto names_room = room_for(sizeof(ethtool_gstrings), count, ETH_GSTRING_LEN);
    auto values_room = room_for(sizeof(ethtool_stats), count, sizeof(std::uint64_t));
    auto* const names = reinterpret_cast<ethtool_gstrings*>(names_room.data());
    auto* const values = reinterpret_cast<ethtool_stats*>(values_room.data());
    names->cmd = ETHTOOL_GSTRINGS;
    names->string_set = ETH_SS_STATS;
    names->len = values->n_stats = count;
    values->cmd = ETHTOOL_GSTATS;
    if (!ask(socket, interface, names) || !ask(socket, interface, values)) return {};
    std::string told;
    for (std::uint32_t i = 0; i < count; ++i) {
        const auto* const bytes =
            reinterpret_cast<const char*>(names->data + std::size_t{i} * ETH_GSTRING_LEN);
        const std::string name(bytes, ::strnlen(bytes, ETH_GSTRING_LEN));
        char direction[3] = {};
        unsigned queue = 0;
        int end = 0;
        if (std::sscanf(name.c_str(), "%2[rtx]_queue_%u_packets%n", direction, &queue, &end) != 2 ||
            static_cast<std::size_t>(end) != name.size())
            continue;
        told += text(" %s%u=%llu", direction, queue, static_cast<unsigned long long>(values->data[i]));
    }
    return told.empty() ? told : told.substr(1);
}

} // namespace

void next_cpu() {
    thread_local unsigned cpu = 0;
    cpu = (cpu + 1) % static_cast<unsigned>(::sysconf(_SC_NPROCESSORS_ONLN));
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    ::sched_setaffinity(0, sizeof(set), &set);
}

unsigned disk_queues(const std::string& name) {
    unsigned count = 0;
    while (::access(("/sys/block/" + name + "/mq/" + std::to_string(count)).c_str(), F_OK) == 0)
        ++count;
    return count;
}

std::string queue_packets(const std::string& interface) {
    const int socket = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    const std::string told = packets(socket, interface);
    ::close(socket);
    return told;
}

} // namespace linux_guest
