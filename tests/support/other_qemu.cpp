#include "tests/support/other_qemu.hpp"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>
#include <vector>

namespace liveupdate::tests {
namespace {

std::string read_whole(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void write_whole(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

} // namespace

OtherQemu::OtherQemu() {
    namespace fs = std::filesystem;
    fs::create_directories(folder_.at("bin"));
    fs::create_directory_symlink("/usr/share", folder_.at("share"));
    fs::create_directory_symlink("/usr/lib", folder_.at("lib"));
    fs::copy_file(kQemuPath, path());
    change_build_id();
}

void OtherQemu::forget(const std::string& name) const {
    std::string bytes = read_whole(path());
    for (size_t at = bytes.find(name); at != std::string::npos; at = bytes.find(name, at + 1))
        bytes[at + name.size() - 1] = '~';
    write_whole(path(), bytes);
}

void OtherQemu::exchange(const std::string& one, const std::string& other) const {
    std::string bytes = read_whole(path());
    std::vector<std::pair<size_t, const std::string*>> places;
    for (const auto& [from, to] : {std::pair(&one, &other), std::pair(&other, &one)})
        for (size_t at = bytes.find(*from); at != std::string::npos; at = bytes.find(*from, at + 1))
            places.emplace_back(at, to);
    for (const auto& [at, name] : places)
        bytes.replace(at, name->size(), *name);
    write_whole(path(), bytes);
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
