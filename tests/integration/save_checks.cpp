#include "tests/integration/save_checks.hpp"

#include <doctest/doctest.h>

#include "handoff/base/fd.hpp"

namespace liveupdate::tests {

nlohmann::json save_request(const std::string& directory, const nlohmann::json& more) {
    nlohmann::json request = {{"command", "save"}, {"directory", directory}, {"kind", "file"}};
    if (more.is_object()) request.update(more);
    return request;
}

nlohmann::json saved(LiveVm& vm, const std::string& directory, const nlohmann::json& more) {
    const auto report = vm.call(save_request(directory, more));
    REQUIRE_MESSAGE(report, report.error().message);
    return *report;
}

void restored(LiveVm& vm, const std::string& directory, const std::string& binary) {
    const auto result = vm.restore(directory, binary);
    REQUIRE_MESSAGE(result, result.error().message);
}

void stop(LiveVm& vm) {
    REQUIRE(vm.call({{"command", "stop"}}));
    REQUIRE(vm.await_supervisor_end() == 0);
}

std::string content_of(const std::string& path) {
    const auto content = fd::read_file(path, size_t{1} << 30);
    REQUIRE_MESSAGE(content, content.error().message);
    return *content;
}

std::string file_in(const std::string& directory) {
    return directory + "/guest.save";
}
std::string new_file_in(const std::string& directory) {
    return directory + "/guest.save.new";
}

} // namespace liveupdate::tests
