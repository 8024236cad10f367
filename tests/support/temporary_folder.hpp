// A new folder under /tmp or elsewhere, removed with all that is in it at the end.
#pragma once

#include <linux/magic.h>
#include <sys/vfs.h>

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

// One that is on no tmpfs: /tmp, or where this process was started; empty when neither is.
inline std::string folder_on_disk() {
    for (const std::string& folder : {std::string("/tmp"), std::filesystem::current_path().string()}) {
        struct statfs where {};
        if (::statfs(folder.c_str(), &where) == 0 && where.f_type != TMPFS_MAGIC) return folder;
    }
    return {};
}

} // namespace liveupdate::tests
