// 1,000 damaged files: each is refused with a reason, or, where what was changed is no part of the guest, its
// RAM and its state come back as they were. The independent reader in docs/ must say the same of some.
#include <fstream>
#include <map>

#include "handoff/save/checksum.hpp"
#include "tests/support/command.hpp"
#include "tests/unit/handoff/save/fixture.hpp"

namespace liveupdate::handoff::save {
namespace {

namespace fs = std::filesystem;

constexpr int kFiles = 1000;
constexpr int kForPython = 100;

std::string reader_script() {
    return std::string(LIVEUPDATE_SOURCE_DIR) + "/docs/read_save.py";
}

bool have_python() {
    return tests::run_command({"python3", "--version"}).status == 0;
}

void write_bytes(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// Where the guest's own bytes are: header, tables, pages that are not zero, state.
std::vector<std::pair<uint64_t, uint64_t>> parts(const SmallGuest& guest, uint64_t state_size) {
    const Layout layout = Layout::of(guest.blocks);
    std::vector<std::pair<uint64_t, uint64_t>> found = {{0, kPage}, {layout.state_at, state_size}};
    for (size_t i = 0; i < guest.blocks.size(); ++i) {
        found.emplace_back(layout.blocks[i].bitmap_at, bitmap_bytes(guest.blocks[i].size));
        found.emplace_back(layout.blocks[i].sums_at, sums_bytes(guest.blocks[i].size));
    }
    for (const uint64_t page : {0, 1, 2, 7, 255, 256, 300, 517})
        found.emplace_back(layout.blocks[0].pages_at + page * kPage, kPage);
    return found;
}

struct Damage {
    std::string what;
    std::string bytes;
    bool may_be_harmless = false;
};

class Damager {
public:
    Damager(std::string whole, std::vector<std::pair<uint64_t, uint64_t>> parts)
        : whole_(std::move(whole)), parts_(std::move(parts)) {}

    Damage next() {
        Damage damage{"", whole_};
        switch (below(6)) {
        case 0: // anywhere: most of it is padding or holes
            flip(damage, below(whole_.size()), 1 + below(8));
            damage.may_be_harmless = true;
            break;
        case 1:
        case 2: { // in a part that matters
            const auto [at, size] = parts_[below(parts_.size())];
            flip(damage, at + below(size), 1);
            break;
        }
        case 3:
            damage.bytes.resize(below(whole_.size()));
            damage.what = "cut to " + std::to_string(damage.bytes.size());
            break;
        case 4:
            damage.bytes.append(1 + below(10000), static_cast<char>(below(256)));
            damage.what = "longer";
            break;
        default: { // a length, an offset or a count in the header, with its checksum put right
            const size_t at = 12 + 4 * below((3200 - 12) / 4);
            for (size_t i = 0; i < 4; ++i)
                damage.bytes[at + i] = static_cast<char>(below(256));
            seal(damage.bytes);
            damage.what = "header's 4 bytes at " + std::to_string(at);
            damage.may_be_harmless = true; // a name, or the same as before
        }
        }
        return damage;
    }

private:
    uint64_t below(uint64_t limit) { return random_() % limit; }
    static void flip(Damage& damage, uint64_t at, uint64_t bits) {
        damage.what = std::to_string(bits) + " bits at " + std::to_string(at);
        for (uint64_t i = 0; i < bits; ++i)
            damage.bytes[at] = static_cast<char>(damage.bytes[at] ^ (1 << i));
    }
    static void seal(std::string& bytes) {
        const uint64_t sum = checksum(std::string_view(bytes).substr(0, 4088));
        for (size_t i = 0; i < 8; ++i)
            bytes[4088 + i] = static_cast<char>(sum >> (8 * i) & 0xff);
    }

    std::mt19937_64 random_{20261125};
    std::string whole_;
    std::vector<std::pair<uint64_t, uint64_t>> parts_;
};

} // namespace

TEST_CASE("of 1,000 damaged files none gives a guest other RAM, and each that is refused is told why") {
    const tests::TemporaryFolder folder;
    const SmallGuest guest;
    const std::string whole = must(fd::read_file(guest.save(folder.at(""))));
    Damager damager(whole, parts(guest, sample_guest(guest.blocks).ByteSizeLong()));
    const bool python = have_python();
    if (!python) MESSAGE("SKIPPED: there is no python3, so docs/read_save.py is not asked");
    int refused = 0;
    for (int i = 0; i < kFiles; ++i) {
        const Damage damage = damager.next();
        CAPTURE(damage.what);
        const std::string path = folder.at("damaged");
        write_bytes(path, damage.bytes);
        const auto same = read_and_compare(path, guest);
        if (same) {
            if (!*same) FAIL("other RAM than was saved");
            if (!damage.may_be_harmless && damage.bytes != whole) FAIL("not noticed");
        } else {
            ++refused;
            const bool later = contains(same.error().message, "the file has version ");
            if ((same.error().code != ErrorCode::kRefused && !later) || !contains(same.error().message, path))
                FAIL("refused without a reason: " << same.error().message);
        }
        if (!python || i >= kForPython) continue;
        const auto said = tests::run_command({"python3", reader_script(), "--verify", path});
        if ((said.status == 0) != same.has_value())
            FAIL("docs/read_save.py judges otherwise: " << said.out << said.err);
    }
    MESSAGE(refused << " of " << kFiles << " refused");
    CHECK(refused > kFiles / 2);
    CHECK(refused < kFiles); // else the harmless ones were not tried
}

TEST_CASE("docs/read_save.py sees in a file what the writer has put there") {
    if (!have_python()) {
        MESSAGE("SKIPPED: there is no python3");
        return;
    }
    const tests::TemporaryFolder folder;
    const SmallGuest guest;
    const std::string path = guest.save(folder.at(""));
    const auto told = tests::run_command({"python3", reader_script(), "--verify", path});
    CHECK(told.status == 0);
    CHECK(contains(told.out, "VM web1, saved by liveupdate-vmm 0.1.0"));
    CHECK(contains(told.out, "RAM block ram0: 2121728 bytes, 8 pages from 1048576"));
    CHECK(contains(told.out, "section vcpu/0: version 1, 100 bytes"));
    const auto ram = tests::run_command({"python3", reader_script(), "--extract", "ram0", path});
    const auto wanted = guest.ram0.bytes();
    CHECK(ram.out == std::string(reinterpret_cast<const char*>(wanted.data()), wanted.size()));
}

} // namespace liveupdate::handoff::save
