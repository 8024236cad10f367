// Steps that tests of saves and restores share.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/live_vm.hpp"

namespace liveupdate::tests {

// Of a save to the file; `more` in place of, and beside, what that says.
nlohmann::json save_request(const std::string& directory, const nlohmann::json& more = {});

// These fail the test case that they are called in. The report of a save:
nlohmann::json saved(LiveVm& vm, const std::string& directory, const nlohmann::json& more = {});
// By the VMM `binary`, or by the VM file's.
void restored(LiveVm& vm, const std::string& directory, const std::string& binary = "");
void stop(LiveVm& vm);
std::string content_of(const std::string& path);

// A save's file, and what it is called until it is whole.
std::string file_in(const std::string& directory);
std::string new_file_in(const std::string& directory);

} // namespace liveupdate::tests
