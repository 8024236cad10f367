#include "supervisor/ram_image.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "handoff/shared_memory.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::supervisor {
namespace {

using handoff::SharedMapping;
using handoff::save::kPage;
using handoff::save::PageMap;

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr uint64_t kSize = 3 * kMib + 2 * kPage;

// Page-aligned zeroed memory.
class Memory {
public:
    Memory() : file_(*handoff::create_sealed_memfd("test-ram", kSize)) {
        mapping_ = *SharedMapping::map(file_.get(), 0, kSize, handoff::MapMode::kShared);
    }
    std::span<std::byte> bytes() const { return mapping_.bytes(); }

private:
    UniqueFd file_;
    SharedMapping mapping_;
};

struct Image {
    const tests::TemporaryFolder folder;
    const std::string path = folder.at("ram0");
    const Memory ram;
    std::vector<uint64_t> sums;

    Image() {
        PageMap which(kSize / kPage);
        for (const uint64_t page : {uint64_t{0}, uint64_t{5}, 2 * kMib / kPage + 7, kSize / kPage - 1}) {
            ram.bytes()[page * kPage + 9] = std::byte{7};
            which.set(page);
        }
        which.set(6); // which is zero
        auto written = write_ram_image(path, ram.bytes(), which, -1);
        REQUIRE_MESSAGE(written, written.error().message);
        sums = std::move(*written);
    }
    void change(uint64_t at) const {
        std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
        file.seekp(static_cast<std::streamoff>(at));
        file.put(1);
    }
    std::string refusal() const {
        const auto read = read_ram_image(path, kSize, sums, {});
        REQUIRE_FALSE(read.has_value());
        return read.error().message;
    }
};

} // namespace

TEST_CASE("an image of RAM is RAM byte by byte, with holes, and is read back as it was") {
    const Image image;
    CHECK(image.sums.size() == 4);
    CHECK(image.sums[1] == 0);
    const Memory read;
    CHECK(read_ram_image(image.path, kSize, image.sums, read.bytes()));
    CHECK(std::equal(read.bytes().begin(), read.bytes().end(), image.ram.bytes().begin()));
    struct stat status {};
    REQUIRE(::stat(image.path.c_str(), &status) == 0);
    CHECK(status.st_size == static_cast<off_t>(kSize));
    CHECK(static_cast<uint64_t>(status.st_blocks) * 512 < kMib);
    CHECK((status.st_mode & 0777) == 0600);
}

TEST_CASE("an image that was changed is refused, where it had data and where it had none") {
    for (const auto& [at, words] : {std::pair(uint64_t{9}, "chunk 0"), std::pair(kMib + 5, "chunk 1"),
             std::pair(3 * kMib + 3, "chunk 3")}) {
        const Image image;
        image.change(at);
        const std::string why = image.refusal();
        CHECK_MESSAGE(why.find(words) != std::string::npos, why);
    }
}

TEST_CASE("an image of another size is refused, and so are checksums of another count") {
    Image image;
    std::filesystem::resize_file(image.path, kSize - kPage);
    CHECK(image.refusal().find("bytes") != std::string::npos);
    std::filesystem::resize_file(image.path, kSize);
    image.sums.pop_back();
    CHECK(image.refusal().find("3 checksums") != std::string::npos);
}

TEST_CASE("an image does not take the place of a file that is there") {
    const Image image;
    const auto again = write_ram_image(image.path, image.ram.bytes(), PageMap(kSize / kPage), -1);
    CHECK_FALSE(again.has_value());
    CHECK(read_ram_image(image.path, kSize, image.sums, {}));
}

} // namespace liveupdate::supervisor
