// A supervisor for tests of the command: a real control server on a thread of its own, with canned answers.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "supervisor/control_server.hpp"
#include "supervisor/paths.hpp"

namespace liveupdate::supervisor {

class FakeSupervisor : public ControlHandler {
public:
    // Called on the loop's thread for each request.
    using Answer = std::function<void(const nlohmann::json& request, ControlReply& reply)>;

    FakeSupervisor(const Paths& paths, const std::string& name, Answer answer);
    FakeSupervisor(const FakeSupervisor&) = delete;
    FakeSupervisor& operator=(const FakeSupervisor&) = delete;
    ~FakeSupervisor() override;

    void handle(nlohmann::json request, std::shared_ptr<ControlReply> reply) override;

    // What was asked so far.
    std::vector<nlohmann::json> requests() const;
    // Keeps a reply that Answer could not give yet; finish_kept() gives it.
    void keep(std::shared_ptr<ControlReply> reply);
    void finish_kept(const nlohmann::json& result);
    // The reply of the request that is being answered, to be kept.
    std::shared_ptr<ControlReply> current() const { return current_; }

private:
    Answer answer_;
    mutable std::mutex mutex_;
    std::vector<nlohmann::json> requests_;
    std::shared_ptr<ControlReply> current_;
    std::vector<std::shared_ptr<ControlReply>> kept_;
    std::unique_ptr<systemd::EventLoop> loop_;
    std::unique_ptr<ControlServer> server_;
    std::thread thread_;
};

// A status as a supervisor of a running VM would answer.
nlohmann::json sample_status(const std::string& name);

} // namespace liveupdate::supervisor
