#include "supervisor/service.hpp"

#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>

#include "supervisor/kept_vmms.hpp"
#include "systemd/notify.hpp"
#include "systemd/restart.hpp"

namespace liveupdate::supervisor {
namespace {

constexpr auto kManagerTime = std::chrono::seconds(5);
constexpr auto kAskTime = std::chrono::seconds(1);
constexpr const char* kSlice = "liveupdate.slice";

bool is_known(const std::string& name) {
    const auto is = [&](const char* word) { return name == word; };
    return is("control") || is("baton") || is("previous") || is("witness") || is("firmware") ||
           is("origin") || name.starts_with("ram") || name.starts_with(kKeptPidfd) ||
           name.starts_with(kKeptSession);
}

// A manager that does not listen is no reason to stop anything.
void warn_of(const std::string& vm_name, const Result<void>& done) {
    if (!done) spdlog::warn("{}: {}", vm_name, done.error().message);
}

} // namespace

Service::Service(std::string vm_name) : vm_name_(std::move(vm_name)), unit_(systemd::own_unit()) {}

Service::Service(Service&& other) noexcept
    : vm_name_(other.vm_name_), unit_(std::move(other.unit_)), kept_(std::move(other.kept_)),
      stored_(std::move(other.stored_)), status_(std::move(other.status_)) {}

Service Service::of_this_process(std::string vm_name, std::vector<std::string>& warnings) {
    Service service(std::move(vm_name));
    for (auto& [name, file] : systemd::take_passed_fds()) {
        if (!is_known(name)) {
            warnings.push_back("a file descriptor '" + name + "' was passed that nobody here knows; dropped");
            warn_of(service.vm_name_, systemd::remove_stored_fd(name));
            continue;
        }
        struct stat status {};
        ::fstat(file.get(), &status);
        service.stored_[name] = {status.st_dev, status.st_ino};
        service.kept_[name] = std::move(file);
    }
    return service;
}

void Service::store(const handoff::FdToSend& file) {
    struct stat status {};
    if (::fstat(file.fd, &status) < 0) return;
    const FileId id{status.st_dev, status.st_ino};
    const auto known = stored_.find(file.name);
    if (known != stored_.end() && known->second == id) return;
    if (known != stored_.end()) warn_of(vm_name_, systemd::remove_stored_fd(file.name));
    warn_of(vm_name_, systemd::store_fd(file.name, file.fd));
    stored_[file.name] = id;
}

void Service::shelter(const StartedVmm& vmm) {
    if (!systemd::has_manager()) return;
    const std::string number = std::to_string(vmm.pid);
    {
        const std::lock_guard lock(mutex_);
        store({kept_pidfd(vmm.pid), vmm.pidfd});
        if (vmm.session_file >= 0) store({kept_session(vmm.pid), vmm.session_file});
    }
    const Deadline deadline = Deadline::after(kManagerTime);
    if (unit_) {
        const auto moved = systemd::move_to_scope(vmm.pid,
            {"liveupdate-vmm-" + vm_name_ + "-" + number + ".scope", "VMM of " + vm_name_, kSlice, *unit_},
            deadline);
        if (!moved)
            spdlog::warn("{}: the VMM with pid {} stays in the control group of {}: {}", vm_name_, number,
                unit_->name, moved.error().message);
    }
    warn_of(vm_name_, systemd::barrier(deadline));
}

void Service::keep(const std::vector<handoff::FdToSend>& all) {
    if (!systemd::has_manager()) return;
    const std::lock_guard lock(mutex_);
    for (auto known = stored_.begin(); known != stored_.end();) {
        const bool wanted =
            std::any_of(all.begin(), all.end(), [&](const auto& file) { return file.name == known->first; });
        if (wanted) {
            ++known;
            continue;
        }
        warn_of(vm_name_, systemd::remove_stored_fd(known->first));
        known = stored_.erase(known);
    }
    for (const auto& file : all)
        store(file);
    warn_of(vm_name_, systemd::barrier(Deadline::after(kManagerTime)));
}

void Service::status(const std::string& text) {
    const std::lock_guard lock(mutex_);
    if (text == status_) return;
    status_ = text;
    warn_of(vm_name_, systemd::notify("STATUS=" + text));
}

void Service::ready() {
    warn_of(vm_name_, systemd::notify("READY=1"));
}

void Service::reloading() {
    warn_of(vm_name_, systemd::notify_reloading());
}

bool Service::is_being_restarted() const {
    if (!unit_) return false;
    const auto restarted = systemd::is_being_restarted(*unit_, Deadline::after(kAskTime));
    return restarted && *restarted;
}

void Service::stopping(std::chrono::microseconds at_most) {
    warn_of(vm_name_, systemd::notify("STOPPING=1\nEXTEND_TIMEOUT_USEC=" + std::to_string(at_most.count())));
}

} // namespace liveupdate::supervisor
