#include "supervisor/binary.hpp"

#include <elf.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <optional>
#include <vector>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor {
namespace {

constexpr size_t kMostProgramHeaders = 512;
constexpr uint64_t kMostNoteBytes = uint64_t{1} << 20;
constexpr size_t kLongestBuildId = 64;

// An open file whose size is known; reads outside it fail in words.
class ElfFile {
public:
    ElfFile(int fd, uint64_t size, const std::string& path) : fd_(fd), size_(size), path_(path) {}

    uint64_t size() const { return size_; }
    Error error(std::string_view what) const {
        return {ErrorCode::kInvalid, path_ + " " + std::string(what)};
    }

    Result<void> read(uint64_t offset, void* data, uint64_t length) const {
        if (offset > size_ || length > size_ - offset) return error("is truncated; copy it again");
        uint64_t done = 0;
        while (done < length) {
            const ssize_t n = ::pread(
                fd_, static_cast<char*>(data) + done, length - done, static_cast<off_t>(offset + done));
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) return Error::from_errno("read " + path_);
            if (n == 0) return error("is truncated; copy it again");
            done += static_cast<uint64_t>(n);
        }
        return {};
    }

private:
    int fd_;
    uint64_t size_;
    const std::string& path_;
};

Result<void> check_magic(const ElfFile& file) {
    char magic[SELFMAG] = {};
    if (file.size() == 0) return file.error("is empty; give the path of a VMM binary");
    TRY(file.read(0, magic, std::min<uint64_t>(file.size(), sizeof(magic))));
    if (magic[0] == '#' && magic[1] == '!')
        return file.error("is a script, not an ELF executable; give the path of the VMM binary itself");
    if (std::memcmp(magic, ELFMAG, SELFMAG) != 0)
        return file.error("is not an ELF file; give the path of a VMM binary");
    return {};
}

Result<Elf64_Ehdr> read_header(const ElfFile& file) {
    TRY(check_magic(file));
    Elf64_Ehdr header{};
    TRY(file.read(0, &header, sizeof(header)));
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB ||
        header.e_machine != EM_X86_64)
        return file.error("is not for x86-64; give a VMM built for this machine");
    if ((header.e_type != ET_EXEC && header.e_type != ET_DYN) || header.e_entry == 0)
        return file.error("is an ELF file but no program (an object file or a library); give a VMM binary");
    if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum == 0 ||
        header.e_phnum > kMostProgramHeaders)
        return file.error("has a damaged ELF header; copy it again");
    return header;
}

uint64_t align4(uint64_t value) {
    return (value + 3) & ~uint64_t{3};
}

std::string hex(const unsigned char* data, size_t size) {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    for (size_t i = 0; i < size; ++i) {
        text += kDigits[data[i] >> 4];
        text += kDigits[data[i] & 15];
    }
    return text;
}

// The build-id among the notes of one segment, if it is there.
Result<std::optional<std::string>> find_build_id(
    const ElfFile& file, const std::vector<unsigned char>& notes) {
    uint64_t at = 0;
    while (notes.size() - at >= sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr note;
        std::memcpy(&note, notes.data() + at, sizeof(note));
        // 64-bit sums of 32-bit lengths: none can wrap.
        const uint64_t name = at + sizeof(note);
        const uint64_t description = name + align4(note.n_namesz);
        const uint64_t end = description + note.n_descsz;
        if (end > notes.size()) return file.error("has damaged ELF notes; copy it again");
        if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && !std::memcmp(&notes[name], "GNU", 4)) {
            if (note.n_descsz == 0 || note.n_descsz > kLongestBuildId)
                return file.error(
                    "has a build-id of " + std::to_string(note.n_descsz) + " bytes; link it again");
            return std::optional(hex(&notes[description], note.n_descsz));
        }
        at = std::min<uint64_t>(align4(end), notes.size());
    }
    return std::optional<std::string>();
}

Result<std::string> read_build_id(const ElfFile& file) {
    TRY_ASSIGN(const Elf64_Ehdr header, read_header(file));
    std::vector<Elf64_Phdr> segments(header.e_phnum);
    TRY(file.read(header.e_phoff, segments.data(), segments.size() * sizeof(Elf64_Phdr)));
    for (const Elf64_Phdr& segment : segments) {
        if (segment.p_type != PT_NOTE) continue;
        if (segment.p_filesz > kMostNoteBytes) return file.error("has damaged ELF notes; copy it again");
        std::vector<unsigned char> notes(segment.p_filesz);
        TRY(file.read(segment.p_offset, notes.data(), notes.size()));
        TRY_ASSIGN(const auto build_id, find_build_id(file, notes));
        if (build_id) return *build_id;
    }
    return file.error("has no build-id, by which builds are told apart; link it with -Wl,--build-id=sha1");
}

} // namespace

Result<BinaryInfo> inspect_binary_fd(int fd, const std::string& path) {
    struct stat status {};
    if (::fstat(fd, &status) < 0) return Error::from_errno("stat " + path);
    if (!S_ISREG(status.st_mode))
        return Error(ErrorCode::kInvalid,
            path + (S_ISDIR(status.st_mode) ? " is a directory" : " is not a regular file") +
                "; give the path of a VMM binary");
    BinaryInfo info;
    info.path = path;
    info.size = static_cast<uint64_t>(status.st_size);
    info.device = status.st_dev;
    info.inode = status.st_ino;
    TRY_ASSIGN(info.build_id, read_build_id(ElfFile(fd, info.size, path)));
    return info;
}

Result<BinaryInfo> inspect_binary(const std::string& path) {
    // O_NONBLOCK: a FIFO must not hold us.
    auto file = fd::open(path, O_RDONLY | O_NONBLOCK);
    if (!file) {
        if (file.error().system_errno == ENOENT || file.error().system_errno == ENOTDIR)
            return Error(
                ErrorCode::kNotFound, path + " does not exist; install the VMM or give another path", ENOENT);
        return std::move(file).error();
    }
    TRY_ASSIGN(BinaryInfo info, inspect_binary_fd(file->get(), path));
    if (::faccessat(AT_FDCWD, path.c_str(), X_OK, AT_EACCESS) < 0)
        return Error(ErrorCode::kInvalid, path + " is not executable; run chmod +x on it", EACCES);
    return info;
}

Result<BinaryInfo> inspect_process(pid_t pid) {
    const std::string link = "/proc/" + std::to_string(pid) + "/exe";
    auto file = fd::open(link, O_RDONLY | O_NONBLOCK);
    if (!file) {
        if (file.error().system_errno == ENOENT)
            return Error(ErrorCode::kNotFound, "process " + std::to_string(pid) + " is gone", ESRCH);
        return std::move(file).error();
    }
    char target[PATH_MAX];
    const ssize_t length = ::readlink(link.c_str(), target, sizeof(target));
    if (length < 0) return Error::from_errno("read " + link);
    std::string path(target, static_cast<size_t>(length));
    constexpr std::string_view kDeleted = " (deleted)";
    if (path.ends_with(kDeleted)) path.resize(path.size() - kDeleted.size());
    return inspect_binary_fd(file->get(), path);
}

std::string short_build_id(const std::string& build_id) {
    return build_id.substr(0, 8);
}

} // namespace liveupdate::supervisor
