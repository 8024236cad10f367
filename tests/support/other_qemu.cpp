#include "tests/support/other_qemu.hpp"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace liveupdate::tests {

OtherQemu::OtherQemu() {
    namespace fs = std::filesystem;
    fs::create_directories(folder_.at("bin"));
    fs::create_directory_symlink("/usr/share", folder_.at("share"));
    fs::create_directory_symlink("/usr/lib", folder_.at("lib"));
    fs::copy_file(kQemuPath, path());
    change_build_id();
}

void OtherQemu::forget(const std::string& name) const {
    std::string bytes;
    {
        std::ifstream file(path(), std::ios::binary);
        bytes.assign(std::istreambuf_iterator<char>(file), {});
    }
    for (size_t at = bytes.find(name); at != std::string::npos; at = bytes.find(name, at + 1))
        bytes[at + name.size() - 1] = '~';
    std::ofstream(path(), std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

void OtherQemu::change_build_id() const {
    std::fstream file(path(), std::ios::in | std::ios::out | std::ios::binary);
    std::string head(1 << 16, '\0');
    file.read(head.data(), static_cast<std::streamsize>(head.size()));
    const size_t note = head.find(std::string("\x03\0\0\0GNU\0", 8)); // NT_GNU_BUILD_ID
    if (note == std::string::npos) {
        std::fprintf(stderr, "OtherQemu: %s has no build-id where one is looked for\n", kQemuPath);
        return;
    }
    file.seekp(static_cast<std::streamoff>(note + 8));
    file.put(static_cast<char>(~head[note + 8]));
}

} // namespace liveupdate::tests
