#include "handoff/save/layout.hpp"

#include <algorithm>

#include "handoff/base/words.hpp"

namespace liveupdate::handoff::save {
namespace {

bool name_is_plain(const std::string& name) {
    return !name.empty() && name.size() <= kMaxNameBytes && std::all_of(name.begin(), name.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
    });
}

Result<void> check_block(const BlockSpec& block) {
    if (!name_is_plain(block.name))
        return Error(ErrorCode::kRefused,
            "a RAM block is called '" + printable(block.name, kMaxNameBytes) + "', not 1 to 32 of [a-z0-9-]");
    if (block.size == 0 || block.size % kPage != 0 || block.size > kMaxBlockBytes)
        return Error(ErrorCode::kRefused, "RAM block " + block.name + " has an impossible size of " +
                                              std::to_string(block.size) + " bytes");
    if (block.place != Place::kHere && block.place != Place::kBeside)
        return Error(ErrorCode::kRefused, "RAM block " + block.name + " lies in an unknown place");
    return {};
}

} // namespace

Result<void> check_blocks(const std::vector<BlockSpec>& blocks) {
    if (blocks.empty() || blocks.size() > kMaxBlocks)
        return Error(ErrorCode::kRefused, "there are " + std::to_string(blocks.size()) +
                                              " RAM blocks; 1 to " + std::to_string(kMaxBlocks) +
                                              " are possible");
    for (auto block = blocks.begin(); block != blocks.end(); ++block) {
        TRY(check_block(*block));
        if (std::any_of(blocks.begin(), block, [&](const BlockSpec& b) { return b.name == block->name; }))
            return Error(ErrorCode::kRefused, "RAM block " + block->name + " is there twice");
    }
    return {};
}

Layout Layout::of(const std::vector<BlockSpec>& blocks) {
    Layout layout;
    uint64_t at = kPage; // behind the header
    for (const BlockSpec& block : blocks) {
        BlockLayout& out = layout.blocks.emplace_back();
        if (block.place != Place::kHere) continue;
        out.bitmap_at = at;
        at += round_up(bitmap_bytes(block.size), kPage);
        out.sums_at = at;
        at += round_up(sums_bytes(block.size), kPage);
    }
    at = round_up(at, kChunk);
    for (size_t i = 0; i < blocks.size(); ++i) {
        if (blocks[i].place != Place::kHere) continue;
        layout.blocks[i].pages_at = at;
        at += round_up(blocks[i].size, kChunk);
    }
    layout.state_at = at;
    return layout;
}

} // namespace liveupdate::handoff::save
