// What the RAM of a guest lacks, as its origin has it: for a save of a guest that was restored page by page.
#pragma once

#include <memory>
#include <string>

#include "handoff/save/reader.hpp"
#include "handoff/shared_memory.hpp"

namespace liveupdate::supervisor {

class OriginPages {
public:
    // `file` is borrowed. Reads and checks all of it, which takes its time: nothing that is damaged may get
    // into another file with a sum that is right.
    static Result<OriginPages> open(int file, handoff::save::IoOptions options);

    // The pages that the origin has of a block; nullptr when it does not have the block.
    const handoff::save::PageMap* pages(const std::string& block) const;
    // All of a block that it has; pages that it lacks are zero.
    Result<handoff::SharedMapping> map(const std::string& block) const;

private:
    explicit OriginPages(std::unique_ptr<handoff::save::Reader> file) : file_(std::move(file)) {}

    std::unique_ptr<handoff::save::Reader> file_;
};

} // namespace liveupdate::supervisor
