// RAM blocks that have got names in a folder, for as long as nobody may take them back.
#pragma once

#include <string>
#include <vector>

#include "handoff/ram_block.hpp"

namespace liveupdate::supervisor {

// Names given by link() are taken away again, unless keep() was called.
class NamedRam {
public:
    NamedRam() = default;
    NamedRam(const NamedRam&) = delete;
    NamedRam& operator=(const NamedRam&) = delete;
    ~NamedRam();

    // Locks the block's file for as long as anybody has this description of it, and names it
    // `directory`/NAME. Refused in words: memory without a file system, another file system than the
    // folder's, a name that another file has.
    Result<void> link(const handoff::RamBlock& block, const std::string& directory);
    void keep() { given_.clear(); }

private:
    std::vector<std::string> given_;
};

// Opens and locks a block that link() has named. kBusy: a guest runs on it.
Result<UniqueFd> open_named_ram(const std::string& directory, const std::string& name);

} // namespace liveupdate::supervisor
