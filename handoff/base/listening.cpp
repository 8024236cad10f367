#include "handoff/base/listening.hpp"

#include <fstream>
#include <sstream>

namespace liveupdate {

// A line of /proc/net/unix: NUM REFS PROTOCOL FLAGS TYPE STATE INODE PATH.
bool is_listening(const std::string& path) {
    constexpr unsigned long kAcceptsConnections = 0x10000; // __SO_ACCEPTCON
    std::ifstream table("/proc/net/unix");
    for (std::string line; std::getline(table, line);) {
        if (!line.ends_with(" " + path)) continue;
        std::istringstream words(line);
        std::string skipped;
        unsigned long flags = 0;
        if (words >> skipped >> skipped >> skipped >> std::hex >> flags && (flags & kAcceptsConnections) != 0)
            return true;
    }
    return false;
}

} // namespace liveupdate
