// Numbers of the descriptors that every QEMU of a guest has from its supervisor, by which a later one finds
// them again.
#pragma once

namespace liveupdate::supervisor::qemu {

inline constexpr int kRamFd = 10;
inline constexpr int kBatonFd = 11;          // QEMU does not know it: its supervisors do
inline constexpr int kLifeFd = 12;           // a shared flock(2): QemuFolder::life()
inline constexpr int kConsoleFd = 13;        // for -add-fd, which closes it: the number is QEMU's then
inline constexpr int kConsoleSlaveFd = 14;   // so that a pty lives on without its supervisor
inline constexpr int kConsoleKeptFd = 15;    // the console again, for a later supervisor
inline constexpr int kMonitorFd = 16;        // its end of the monitor's socketpair
inline constexpr int kMonitorKeptFd = 17;    // the supervisor's end, for a later one
inline constexpr int kFirstNetFd = 20;       // taps, one each
inline constexpr int kFirstListeningFd = 40; // of devices that listen: listening_plan.hpp

} // namespace liveupdate::supervisor::qemu
