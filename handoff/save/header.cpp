#include "handoff/save/header.hpp"

#include <algorithm>
#include <cstring>

#include "handoff/save/checksum.hpp"

namespace liveupdate::handoff::save {
namespace {

constexpr std::array<unsigned char, 8> kMagic = {0x89, 'L', 'U', 'S', 'A', 'V', 'E', 0x0a};
constexpr size_t kVersionAt = 8, kCountAt = 12, kFileSizeAt = 16, kStateAtAt = 24, kStateSizeAt = 32,
                 kStateSumAt = 40, kPageSizeAt = 48, kChunkSizeAt = 52, kBlocksAt = 128, kSumAt = 4088;
constexpr size_t kBlockBytes = 96;
// In a block's entry.
constexpr size_t kSizeAt = 32, kPlaceAt = 40, kBitmapAt = 48, kSumsAt = 56, kTablesSumAt = 64, kPagesAt = 72,
                 kWrittenAt = 80;
static_assert(kBlocksAt + kMaxBlocks * kBlockBytes <= kSumAt);

template <typename T>
void put(std::byte* at, T value) {
    for (size_t i = 0; i < sizeof(T); ++i)
        at[i] = static_cast<std::byte>(value >> (8 * i) & 0xff);
}

template <typename T>
T get(const std::byte* at) {
    T value = 0;
    for (size_t i = 0; i < sizeof(T); ++i)
        value |= static_cast<T>(std::to_integer<T>(at[i]) << (8 * i));
    return value;
}

uint64_t sum_of(std::span<const std::byte> page) {
    return checksum({reinterpret_cast<const char*>(page.data()), kSumAt});
}

void encode_block(const BlockHeader& block, const BlockLayout& layout, std::byte* at) {
    std::memcpy(at, block.spec.name.data(), block.spec.name.size());
    put(at + kSizeAt, block.spec.size);
    put(at + kPlaceAt, static_cast<uint32_t>(block.spec.place));
    if (block.spec.place != Place::kHere) return;
    put(at + kBitmapAt, layout.bitmap_at);
    put(at + kSumsAt, layout.sums_at);
    put(at + kTablesSumAt, block.tables_sum);
    put(at + kPagesAt, layout.pages_at);
    put(at + kWrittenAt, block.written);
}

BlockHeader decode_block(const std::byte* at) {
    BlockHeader block;
    const char* name = reinterpret_cast<const char*>(at);
    block.spec.name.assign(name, ::strnlen(name, kMaxNameBytes));
    block.spec.size = get<uint64_t>(at + kSizeAt);
    block.spec.place = static_cast<Place>(get<uint32_t>(at + kPlaceAt));
    block.tables_sum = get<uint64_t>(at + kTablesSumAt);
    block.written = get<uint64_t>(at + kWrittenAt);
    return block;
}

// What comes before everything else, since a later version may change all the rest.
Result<void> check_kind(std::span<const std::byte> page) {
    if (page.size() != kPage || std::memcmp(page.data(), kMagic.data(), kMagic.size()) != 0)
        return Error(ErrorCode::kRefused, "this is no file of a saved guest");
    const auto version = get<uint32_t>(page.data() + kVersionAt);
    if (version == 0 || version > kFormatVersion)
        return Error(version == 0 ? ErrorCode::kRefused : ErrorCode::kUnsupported,
            "the file has version " + std::to_string(version) +
                " of the format, and this build reads version " + std::to_string(kFormatVersion) +
                "; use the release that wrote it");
    if (get<uint64_t>(page.data() + kSumAt) != sum_of(page))
        return Error(ErrorCode::kRefused, "the header (bytes 0 to 4095) is damaged: its checksum is wrong");
    return {};
}

} // namespace

std::vector<BlockSpec> Header::specs() const {
    std::vector<BlockSpec> specs;
    for (const BlockHeader& block : blocks)
        specs.push_back(block.spec);
    return specs;
}

uint64_t Header::sum() const {
    return get<uint64_t>(encode(*this).data() + kSumAt);
}

HeaderPage encode(const Header& header) {
    HeaderPage page{};
    const Layout layout = header.layout();
    std::memcpy(page.data(), kMagic.data(), kMagic.size());
    put(page.data() + kVersionAt, kFormatVersion);
    put(page.data() + kCountAt, static_cast<uint32_t>(header.blocks.size()));
    put(page.data() + kFileSizeAt, layout.file_size(header.state_size));
    put(page.data() + kStateAtAt, layout.state_at);
    put(page.data() + kStateSizeAt, header.state_size);
    put(page.data() + kStateSumAt, header.state_sum);
    put(page.data() + kPageSizeAt, static_cast<uint32_t>(kPage));
    put(page.data() + kChunkSizeAt, static_cast<uint32_t>(kChunk));
    for (size_t i = 0; i < header.blocks.size(); ++i)
        encode_block(header.blocks[i], layout.blocks[i], page.data() + kBlocksAt + i * kBlockBytes);
    put(page.data() + kSumAt, sum_of(page));
    return page;
}

Result<Header> decode(std::span<const std::byte> page, uint64_t file_size) {
    TRY(check_kind(page));
    Header header;
    const auto count = get<uint32_t>(page.data() + kCountAt);
    for (size_t i = 0; i < std::min<size_t>(count, kMaxBlocks); ++i)
        header.blocks.push_back(decode_block(page.data() + kBlocksAt + i * kBlockBytes));
    if (count > kMaxBlocks) return Error(ErrorCode::kRefused, "the header names too many RAM blocks");
    TRY(check_blocks(header.specs()).context("the header"));
    header.state_size = get<uint64_t>(page.data() + kStateSizeAt);
    header.state_sum = get<uint64_t>(page.data() + kStateSumAt);
    if (header.state_size == 0 || header.state_size > kMaxStateBytes)
        return Error(ErrorCode::kRefused,
            "the header tells of a state of " + std::to_string(header.state_size) + " bytes");
    for (const BlockHeader& block : header.blocks)
        if (block.written > pages_in(block.spec.size))
            return Error(ErrorCode::kRefused,
                "the header tells of more pages of RAM block " + block.spec.name + " than it has");
    // Whatever else it says must be what a writer would have said: offsets, sizes, zeros.
    if (const HeaderPage again = encode(header); std::memcmp(again.data(), page.data(), kPage) != 0)
        return Error(ErrorCode::kRefused, "the header contradicts itself");
    if (const uint64_t wanted = header.layout().file_size(header.state_size); wanted != file_size)
        return Error(ErrorCode::kRefused, "the file has " + std::to_string(file_size) +
                                              " bytes and should have " + std::to_string(wanted) +
                                              "; it was cut, or not written to its end");
    return header;
}

} // namespace liveupdate::handoff::save
