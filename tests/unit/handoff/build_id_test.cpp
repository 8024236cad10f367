#include "handoff/build_id.hpp"

#include <doctest/doctest.h>
#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstring>

#include "handoff/base/fd.hpp"
#include "tests/unit/handoff/support.hpp"

namespace liveupdate::handoff {
namespace {

std::string to_hex(std::string_view bytes) {
    std::string hex;
    for (const char c : bytes) {
        char two[3];
        std::snprintf(two, sizeof(two), "%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
        hex += two;
    }
    return hex;
}

} // namespace

TEST_CASE("a program's own build-id is the one in its file") {
    const std::string id = own_build_id();
    REQUIRE(id.size() == 40); // SHA-1
    CHECK(std::all_of(
        id.begin(), id.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }));
    // An ELF note: name size 4, description size 20, type 3, "GNU", then the id.
    const std::string file = must(fd::read_file("/proc/self/exe", size_t{1} << 30));
    const std::string note("\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0", 16);
    const size_t at = file.find(note);
    REQUIRE(at != std::string::npos);
    CHECK(to_hex(std::string_view(file).substr(at + note.size(), 20)) == id);
}

} // namespace liveupdate::handoff
