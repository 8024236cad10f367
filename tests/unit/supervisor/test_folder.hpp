// A folder of its own for a test, removed at its end.
#pragma once

#include <doctest/doctest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "supervisor/paths.hpp"

namespace liveupdate::supervisor {

class TestFolder {
public:
    TestFolder() {
        char path[] = "/tmp/liveupdate-test-XXXXXX";
        REQUIRE(::mkdtemp(path) != nullptr);
        path_ = path;
    }
    TestFolder(const TestFolder&) = delete;
    TestFolder& operator=(const TestFolder&) = delete;
    ~TestFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }

    const std::string& path() const { return path_; }
    std::string file(const std::string& name) const { return path_ + "/" + name; }
    std::string write(const std::string& name, const std::string& content) const {
        std::filesystem::create_directories(std::filesystem::path(file(name)).parent_path());
        std::ofstream(file(name), std::ios::binary) << content;
        return file(name);
    }
    // Paths whose three folders lie in this one.
    Paths paths() const { return {path_ + "/run", path_ + "/state", path_ + "/vms"}; }

private:
    std::string path_;
};

} // namespace liveupdate::supervisor
