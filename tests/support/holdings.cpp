#include "tests/support/holdings.hpp"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace liveupdate::tests {
namespace {

namespace fs = std::filesystem;

std::string slurp(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// "socket:[4711]" -> "socket"; "/memfd:ram0 (deleted)" -> "memfd:ram0"; "…/vmm-3.sock" -> "vmm-N.sock"
std::string kind_of_link(std::string link) {
    if (link.starts_with("/memfd:")) return link.substr(1, link.find(' ') - 1);
    if (link.rfind("/vmm-") != std::string::npos && link.ends_with(".sock"))
        return "vmm-N.sock"; // each update's VMM has another
    if (const auto bracket = link.find(":["); bracket != std::string::npos && !link.starts_with("anon_inode"))
        link.resize(bracket);
    return link;
}

Kinds kinds_of(pid_t pid) {
    Kinds kinds;
    const fs::path process = "/proc/" + std::to_string(pid);
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(process / "fd", ignored)) {
        const std::string link = fs::read_symlink(entry.path(), ignored).string();
        if (!ignored) ++kinds["fd " + kind_of_link(link)];
    }
    std::ifstream maps(process / "maps");
    for (std::string line; std::getline(maps, line);)
        if (const auto at = line.find("/memfd:"); at != std::string::npos)
            ++kinds["map " + kind_of_link(line.substr(at))];
    return kinds;
}

std::vector<pid_t> all_processes() {
    std::vector<pid_t> pids;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator("/proc", ignored)) {
        const std::string name = entry.path().filename();
        if (std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isdigit(c) != 0; }))
            pids.push_back(static_cast<pid_t>(std::stol(name)));
    }
    return pids;
}

size_t zombie_children(pid_t parent) {
    size_t found = 0;
    for (const pid_t pid : all_processes()) {
        const std::string stat = slurp("/proc/" + std::to_string(pid) + "/stat");
        const auto end = stat.rfind(')');
        if (end == std::string::npos || end + 2 >= stat.size()) continue;
        pid_t its_parent = 0;
        char state = '?';
        if (std::sscanf(stat.c_str() + end + 2, "%c %d", &state, &its_parent) != 2) continue;
        if (its_parent == parent && state == 'Z') ++found;
    }
    return found;
}

std::vector<std::string> sockets_in(const std::string& directory) {
    std::vector<std::string> sockets;
    std::error_code ignored;
    for (const auto& entry : fs::recursive_directory_iterator(directory + "/run", ignored)) {
        if (!entry.is_socket(ignored)) continue;
        const std::string name = entry.path().filename();
        sockets.push_back(name.starts_with("vmm-") ? "vmm-N.sock" : name);
    }
    std::sort(sockets.begin(), sockets.end());
    return sockets;
}

void compare(const std::string& who, const Kinds& before, const Kinds& after, std::string& out) {
    Kinds all = before;
    all.insert(after.begin(), after.end());
    for (const auto& [kind, ignored] : all) {
        const int was = before.contains(kind) ? before.at(kind) : 0;
        const int is = after.contains(kind) ? after.at(kind) : 0;
        if (was != is)
            out += who + ": " + kind + " " + std::to_string(was) + " -> " + std::to_string(is) + "; ";
    }
}

} // namespace

std::vector<pid_t> processes_of(const std::string& directory) {
    std::vector<pid_t> pids;
    for (const pid_t pid : all_processes()) {
        if (pid == ::getpid()) continue;
        const std::string environment = slurp("/proc/" + std::to_string(pid) + "/environ");
        if (environment.find("LIVEUPDATE_RUNTIME_DIR=" + directory + "/run") != std::string::npos)
            pids.push_back(pid);
    }
    return pids;
}

Holdings holdings_of(pid_t supervisor, pid_t vmm, const std::string& directory) {
    return {kinds_of(supervisor), kinds_of(vmm), sockets_in(directory), processes_of(directory).size(),
        zombie_children(supervisor)};
}

std::string to_string(const Holdings& holdings) {
    return difference({}, holdings);
}

std::string difference(const Holdings& before, const Holdings& after) {
    std::string out;
    compare("supervisor", before.supervisor, after.supervisor, out);
    compare("vmm", before.vmm, after.vmm, out);
    compare("runtime folder", {{"sockets", static_cast<int>(before.sockets.size())}},
        {{"sockets", static_cast<int>(after.sockets.size())}}, out);
    compare("all",
        {{"processes", static_cast<int>(before.processes)}, {"zombies", static_cast<int>(before.zombies)}},
        {{"processes", static_cast<int>(after.processes)}, {"zombies", static_cast<int>(after.zombies)}},
        out);
    return out;
}

} // namespace liveupdate::tests
