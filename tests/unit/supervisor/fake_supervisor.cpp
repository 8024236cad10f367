#include "fake_supervisor.hpp"

#include <doctest/doctest.h>

#include "sample_record.hpp"

namespace liveupdate::supervisor {

FakeSupervisor::FakeSupervisor(const Paths& paths, const std::string& name, Answer answer)
    : answer_(std::move(answer)) {
    REQUIRE(make_directories(paths.vm_runtime_dir(name)).has_value());
    auto loop = systemd::EventLoop::create();
    REQUIRE(loop.has_value());
    loop_ = std::move(*loop);
    ControlServerOptions options;
    options.path = paths.control_socket(name);
    auto server = ControlServer::create(*loop_, *this, std::move(options));
    REQUIRE(server.has_value());
    server_ = std::move(*server);
    thread_ = std::thread([this] { static_cast<void>(loop_->run().has_value()); });
}

FakeSupervisor::~FakeSupervisor() {
    loop_->stop();
    thread_.join();
    server_.reset();
    kept_.clear();
    current_.reset();
}

void FakeSupervisor::handle(nlohmann::json request, std::shared_ptr<ControlReply> reply) {
    {
        const std::lock_guard lock(mutex_);
        requests_.push_back(request);
        current_ = reply;
    }
    answer_(request, *reply);
    const std::lock_guard lock(mutex_);
    current_.reset();
}

std::vector<nlohmann::json> FakeSupervisor::requests() const {
    const std::lock_guard lock(mutex_);
    return requests_;
}

void FakeSupervisor::keep(std::shared_ptr<ControlReply> reply) {
    const std::lock_guard lock(mutex_);
    kept_.push_back(std::move(reply));
}

void FakeSupervisor::finish_kept(const nlohmann::json& result) {
    const std::lock_guard lock(mutex_);
    for (const auto& reply : kept_)
        reply->finish(result);
    kept_.clear();
}

nlohmann::json sample_status(const std::string& name) {
    const nlohmann::json vmm = {{"pid", 4711}, {"binary", "/opt/vmm"}, {"version", "1.0"},
        {"build_id", "00112233445566778899"}, {"started_unix", 1795342530}};
    return {{"name", name}, {"state", "running"}, {"supervisor", {{"pid", 4710}, {"version", "1.0"}}},
        {"vmm", vmm}, {"on_disk", {{"binary", "/opt/vmm"}, {"build_id", "ffeeddccbbaa9988"}}},
        {"outdated", true}, {"vcpus", 2}, {"memory_bytes", 512u << 20},
        {"previous", {{"binary", "/opt/vmm-0.9"}, {"version", "0.9"}, {"build_id", "abcdef0123456789"}}},
        {"update", nullptr}, {"last_update", to_json(sample_record())},
        {"console", {{"type", "pty"}, {"path", "/dev/pts/3"}}},
        {"config", "/etc/liveupdate/vms/" + name + ".toml"}};
}

} // namespace liveupdate::supervisor
