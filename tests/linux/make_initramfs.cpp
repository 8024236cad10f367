// make_initramfs LIST OUTPUT: an initramfs (cpio "newc", kernel's Documentation/driver-api/early-userspace/
// buffer-format.rst) without root, mknod or a folder on disk. LIST has one entry per line:
//
//   dir PATH MODE            node PATH MODE MAJOR MINOR (of a character device)
//   file PATH MODE SOURCE    link PATH TARGET
//   program PATH SOURCE      a file of mode 0755, and all shared libraries that it needs where it looks for
//   them
//
// Folders above an entry are made by themselves; a path given twice is taken once. Everything belongs to root
// and carries no time, so the same input gives the same bytes.
#include <array>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr unsigned kFolder = 0040000, kFile = 0100000, kLink = 0120000, kCharacterDevice = 0020000;

struct Device {
    unsigned major = 0, minor = 0;
};

class Archive {
public:
    explicit Archive(const std::string& path) : out_(path, std::ios::binary) {
        if (!out_) throw std::runtime_error("write " + path + ": cannot be opened");
    }

    void add(const std::string& path, unsigned mode, const std::string& content, Device device = {}) {
        if (!path.starts_with("/")) throw std::runtime_error("'" + path + "' is not an absolute path");
        if (!seen_.insert(path).second) return;
        const auto slash = path.rfind('/');
        if (slash > 0) add(path.substr(0, slash), kFolder | 0755, "");
        put(path.substr(1), mode, content, device);
    }
    void finish() {
        put("TRAILER!!!", 0, "", {});
        out_.flush();
        if (!out_) throw std::runtime_error("the archive cannot be written");
    }

private:
    void put(const std::string& name, unsigned mode, const std::string& content, Device device) {
        const std::array<unsigned, 13> fields = {++inode_, mode, 0, 0, 1, 0,
            static_cast<unsigned>(content.size()), 0, 0, device.major, device.minor,
            static_cast<unsigned>(name.size() + 1), 0};
        out_ << "070701";
        for (const unsigned field : fields) {
            std::array<char, 9> hex{};
            std::snprintf(hex.data(), hex.size(), "%08x", field);
            out_ << hex.data();
        }
        out_ << name << '\0';
        pad();
        out_ << content;
        pad();
    }
    void pad() {
        while (out_.tellp() % 4 != 0)
            out_ << '\0';
    }

    std::ofstream out_;
    std::set<std::string> seen_ = {""};
    unsigned inode_ = 0;
};

std::string content_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("read " + path + ": there is no such file");
    return {std::istreambuf_iterator<char>(file), {}};
}

// As ldd tells them: paths of libraries and of the loader. None for a static program.
std::vector<std::string> libraries_of(const std::string& program) {
    const std::string command = "ldd '" + program + "' 2>/dev/null";
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(::popen(command.c_str(), "r"), ::pclose);
    std::vector<std::string> found;
    std::array<char, 4096> line{};
    while (pipe && std::fgets(line.data(), line.size(), pipe.get()) != nullptr) {
        std::istringstream words(line.data());
        for (std::string word; words >> word;) {
            if (word == "not")
                throw std::runtime_error(program + " needs a library that is not there: " + line.data());
            if (word.starts_with("/")) found.push_back(word);
        }
    }
    return found;
}

void add_line(Archive& archive, const std::string& line) {
    std::istringstream words(line);
    std::string kind, path, source;
    unsigned mode = 0;
    Device device;
    words >> kind >> path;
    if (kind.empty() || kind.starts_with("#")) return;
    if (kind == "dir" && words >> std::oct >> mode) return archive.add(path, kFolder | mode, "");
    if (kind == "node" && words >> std::oct >> mode >> std::dec >> device.major >> device.minor)
        return archive.add(path, kCharacterDevice | mode, "", device);
    if (kind == "file" && words >> std::oct >> mode >> source)
        return archive.add(path, kFile | mode, content_of(source));
    if (kind == "link" && words >> source) return archive.add(path, kLink | 0777, source);
    if (kind != "program" || !(words >> source)) throw std::runtime_error("not understood: " + line);
    archive.add(path, kFile | 0755, content_of(source));
    for (const std::string& library : libraries_of(source))
        archive.add(library, kFile | 0755, content_of(library));
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::cerr << "usage: make_initramfs LIST OUTPUT\n";
        return 2;
    }
    try {
        std::ifstream list(argv[1]);
        if (!list) throw std::runtime_error("read " + std::string(argv[1]) + ": there is no such file");
        Archive archive(argv[2]);
        for (std::string line; std::getline(list, line);)
            add_line(archive, line);
        archive.finish();
    } catch (const std::exception& e) {
        std::cerr << "make_initramfs: " << e.what() << '\n';
        return 1;
    }
}
