#include "supervisor/origin_pages.hpp"

#include <algorithm>
#include <vector>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor {
namespace {

using handoff::save::BlockSpec;
using handoff::save::kChunk;

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
    OriginPages origin(std::move(reader));
    TRY(origin.check(options));
    return origin;
}

Result<void> OriginPages::check(const handoff::save::IoOptions& options) const {
    for (const BlockSpec& spec : file_->header().specs()) {
        const size_t block = index_of(*file_, spec.name);
        if (block == kNone) continue;
        handoff::save::Work work(handoff::save::chunks_in(spec.size), options.cancel_fd);
        const auto read_all = [&]() -> Result<void> {
            std::vector<std::byte> bytes(kChunk);
            for (uint64_t chunk = 0; work.take(chunk);)
                TRY(file_->read_chunk(block, chunk, bytes));
            return {};
        };
        TRY(handoff::save::in_threads(options.threads, work, read_all));
    }
    return {};
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
