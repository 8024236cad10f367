#include "supervisor/binary.hpp"

#include <doctest/doctest.h>
#include <elf.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <random>

#include "handoff/base/fd.hpp"
#include "test_folder.hpp"

using namespace liveupdate;
using namespace liveupdate::supervisor;

namespace {

// A small x86-64 program's headers with one note segment; tests damage it.
struct Elf {
    Elf64_Ehdr header{};
    Elf64_Phdr segment{};
    std::string notes;

    Elf() {
        std::memcpy(header.e_ident, ELFMAG, SELFMAG);
        header.e_ident[EI_CLASS] = ELFCLASS64;
        header.e_ident[EI_DATA] = ELFDATA2LSB;
        header.e_type = ET_DYN;
        header.e_machine = EM_X86_64;
        header.e_entry = 0x1000;
        header.e_phoff = sizeof(Elf64_Ehdr);
        header.e_phentsize = sizeof(Elf64_Phdr);
        header.e_phnum = 1;
        segment.p_type = PT_NOTE;
        segment.p_offset = sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr);
    }
    void add_note(uint32_t type, const std::string& name, const std::string& description) {
        const Elf64_Nhdr note{
            static_cast<uint32_t>(name.size() + 1), static_cast<uint32_t>(description.size()), type};
        notes.append(reinterpret_cast<const char*>(&note), sizeof(note));
        for (std::string text : {name + '\0', description}) {
            text.resize((text.size() + 3) / 4 * 4);
            notes += text;
        }
        segment.p_filesz = notes.size();
    }
    std::string bytes() const {
        std::string all(reinterpret_cast<const char*>(&header), sizeof(header));
        all.append(reinterpret_cast<const char*>(&segment), sizeof(segment));
        return all + notes;
    }
};

Elf good_elf() {
    Elf elf;
    elf.add_note(NT_GNU_ABI_TAG, "GNU", std::string(16, '\1'));
    elf.add_note(NT_GNU_BUILD_ID, "GNU", std::string("\x3f\x2a\x91\xc0\x01\x02\x03\x04", 8));
    return elf;
}

std::string executable(const TestFolder& folder, const std::string& bytes) {
    const std::string path = folder.write("vmm", bytes);
    REQUIRE(::chmod(path.c_str(), 0755) == 0);
    return path;
}

// What is said of the file, without its path.
std::string complaint(const std::string& bytes) {
    const TestFolder folder;
    const std::string path = executable(folder, bytes);
    const auto info = inspect_binary(path);
    REQUIRE_FALSE(info.has_value());
    CHECK(info.error().code == ErrorCode::kInvalid);
    REQUIRE(info.error().message.find(path + " ") == 0);
    return info.error().message.substr(path.size() + 1);
}

} // namespace

TEST_CASE("the build-id is found among the notes") {
    const TestFolder folder;
    const std::string path = executable(folder, good_elf().bytes());
    const auto info = inspect_binary(path);
    INFO((info ? "" : info.error().message));
    REQUIRE(info.has_value());
    CHECK(info->build_id == "3f2a91c001020304");
    CHECK(info->path == path);
    CHECK(short_build_id(info->build_id) == "3f2a91c0");
}

TEST_CASE("files that are no program are refused with the reason") {
    CHECK(complaint("") == "is empty; give the path of a VMM binary");
    CHECK(complaint("MZ and more") == "is not an ELF file; give the path of a VMM binary");
    CHECK(complaint("#!/bin/sh\n") ==
          "is a script, not an ELF executable; give the path of the VMM binary itself");
    CHECK(complaint("\x7f"
                    "ELF") == "is truncated; copy it again");
    Elf library = good_elf();
    library.header.e_entry = 0;
    CHECK(complaint(library.bytes()).find("is an ELF file but no program") == 0);
    Elf arm = good_elf();
    arm.header.e_machine = EM_AARCH64;
    CHECK(complaint(arm.bytes()) == "is not for x86-64; give a VMM built for this machine");
    Elf without;
    without.add_note(NT_GNU_ABI_TAG, "GNU", std::string(16, '\1'));
    CHECK(complaint(without.bytes()).find("has no build-id") == 0);
}

TEST_CASE("offsets and lengths of a hostile file are not followed") {
    Elf elf = good_elf();
    elf.header.e_phoff = UINT64_MAX - 8;
    CHECK(complaint(elf.bytes()) == "is truncated; copy it again");
    elf = good_elf();
    elf.header.e_phnum = 0xffff;
    CHECK(complaint(elf.bytes()) == "has a damaged ELF header; copy it again");
    elf = good_elf();
    elf.segment.p_offset = UINT64_MAX - 2;
    CHECK(complaint(elf.bytes()) == "is truncated; copy it again");
    elf = good_elf();
    elf.segment.p_filesz = UINT64_MAX;
    CHECK(complaint(elf.bytes()) == "has damaged ELF notes; copy it again");
    for (const uint32_t length : {0xffffffffu, 0x1000u}) {
        elf = good_elf();
        std::memcpy(elf.notes.data(), &length, 4); // the first note's name
        CHECK(complaint(elf.bytes()) == "has damaged ELF notes; copy it again");
        elf = good_elf();
        std::memcpy(elf.notes.data() + 4, &length, 4); // and its description
        CHECK(complaint(elf.bytes()) == "has damaged ELF notes; copy it again");
    }
    elf = Elf();
    elf.add_note(NT_GNU_BUILD_ID, "GNU", std::string(65, 'x'));
    CHECK(complaint(elf.bytes()).find("has a build-id of 65 bytes") == 0);
}

TEST_CASE("every truncation of a program is refused") {
    const std::string bytes = good_elf().bytes();
    for (size_t size = 0; size < bytes.size(); ++size) {
        CAPTURE(size);
        complaint(bytes.substr(0, size));
    }
}

TEST_CASE("a program with bytes changed at random never does harm") {
    const TestFolder folder;
    std::mt19937 random(1);
    const std::string good = good_elf().bytes();
    for (int i = 0; i < 2000; ++i) {
        std::string bytes = good;
        for (int change = 0; change < 4; ++change)
            bytes[random() % bytes.size()] = static_cast<char>(random());
        const auto info = inspect_binary(executable(folder, bytes));
        if (info) CHECK(info->build_id.size() <= 128);
    }
}

TEST_CASE("a file that may not be executed, a folder, a FIFO and nothing are told apart") {
    const TestFolder folder;
    const std::string path = folder.write("vmm", good_elf().bytes());
    REQUIRE(::chmod(path.c_str(), 0644) == 0);
    CHECK(inspect_binary(path).error().message == path + " is not executable; run chmod +x on it");
    CHECK(inspect_binary(folder.path()).error().message ==
          folder.path() + " is a directory; give the path of a VMM binary");
    REQUIRE(::mkfifo(folder.file("fifo").c_str(), 0755) == 0);
    CHECK(inspect_binary(folder.file("fifo")).error().message.find("is not a regular file") !=
          std::string::npos);
    CHECK(inspect_binary(folder.file("no")).error().code == ErrorCode::kNotFound);
}

TEST_CASE("a running process tells its build-id, also when its file was replaced") {
    const TestFolder folder;
    const std::string own = fd::read_file("/proc/self/exe", size_t{1} << 30).value();
    const std::string path = executable(folder, own);
    const char* const arguments[] = {
        path.c_str(), "--test-case=a child of the tests waits", "--no-skip", nullptr};
    int input[2];
    REQUIRE(::pipe(input) == 0);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, input[0], STDIN_FILENO);
    ::posix_spawn_file_actions_addclose(&actions, input[1]);
    ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    pid_t child = -1;
    REQUIRE(::posix_spawn(
                &child, path.c_str(), &actions, nullptr, const_cast<char* const*>(arguments), environ) == 0);
    ::posix_spawn_file_actions_destroy(&actions);

    const auto before = inspect_process(child);
    REQUIRE(before.has_value());
    CHECK(before->path == path);
    CHECK(before->build_id == inspect_binary("/proc/self/exe").value().build_id);
    std::filesystem::remove(path);
    executable(folder, good_elf().bytes());
    const auto after = inspect_process(child);
    REQUIRE(after.has_value());
    CHECK(after->path == path);
    CHECK(after->build_id == before->build_id);
    CHECK(inspect_binary(path).value().build_id != before->build_id);

    ::close(input[0]);
    ::close(input[1]);
    int status = 0;
    CHECK(::waitpid(child, &status, 0) == child);
    CHECK(inspect_process(child).error().code == ErrorCode::kNotFound);
}

TEST_CASE("a child of the tests waits" * doctest::skip()) {
    char byte = 0;
    CHECK(::read(STDIN_FILENO, &byte, 1) == 0);
}
