#include "supervisor/origin_pages.hpp"

#include <algorithm>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor {
namespace {

using handoff::save::BlockSpec;

constexpr size_t kNone = SIZE_MAX;

// Of a block of RAM that lies in the file.
size_t index_of(const handoff::save::Reader& file, const std::string& block) {
    const auto specs = file.header().specs();
    const auto found = std::find_if(specs.begin(), specs.end(), [&](const BlockSpec& spec) {
        return spec.name == block && spec.place == handoff::save::Place::kHere;
    });
    const bool has_it = block.starts_with("ram") && found != specs.end();
    return has_it ? static_cast<size_t>(found - specs.begin()) : kNone;
}

} // namespace

Result<OriginPages> OriginPages::open(int file, handoff::save::IoOptions options) {
    options.engine = handoff::save::Engine::kCalls; // the page cache has what other guests have touched
    TRY_ASSIGN(UniqueFd own, fd::dup(file));
    TRY_ASSIGN(auto reader, handoff::save::Reader::adopt(std::move(own), "the RAM's origin", options));
    TRY(reader->load_tables());
    for (const BlockSpec& spec : reader->header().specs())
        if (const size_t block = index_of(*reader, spec.name); block != kNone)
            TRY(reader->check_block(block));
    return OriginPages(std::move(reader));
}

const handoff::save::PageMap* OriginPages::pages(const std::string& block) const {
    const size_t index = index_of(*file_, block);
    return index == kNone ? nullptr : &file_->written(index);
}

Result<handoff::SharedMapping> OriginPages::map(const std::string& block) const {
    const size_t index = index_of(*file_, block);
    if (index == kNone) return Error(ErrorCode::kInternal, "the RAM's origin has no block " + block);
    return handoff::SharedMapping::map(file_->fd(), file_->header().layout().blocks[index].pages_at,
        file_->header().specs()[index].size, handoff::MapMode::kReadOnly);
}

} // namespace liveupdate::supervisor
