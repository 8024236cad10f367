// A new folder under /tmp or elsewhere, removed with all that is in it at the end.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace liveupdate::tests {

class TemporaryFolder {
public:
    explicit TemporaryFolder(const std::string& parent = "/tmp") {
        std::string name = parent + "/liveupdate-test-XXXXXX";
        if (::mkdtemp(name.data()) != nullptr) path_ = name;
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    ~TemporaryFolder() {
        std::error_code ignored;
        if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
    }

    std::string at(const std::string& name) const { return path_ + "/" + name; }

private:
    std::string path_;
};

} // namespace liveupdate::tests
