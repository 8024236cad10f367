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
    // `directory`/NAME. A hugetlbfs has no files but RAM: what lies there is named
    // `home`/liveupdate-VM-NAME-INODE, and `directory`/NAME is a symbolic link to that. `home`: the folder
    // that the file was made in. Refused in words: memory without a file system, another file system than the
    // folder's, a name that another file has.
    Result<void> link(const handoff::RamBlock& block, const std::string& directory, const std::string& home,
        const std::string& vm);
    // Brings what has been linked and lies on a disk there: once while the guest runs, so that little is left
    // for when it stands still. kAborted once `cancel_fd` is readable.
    Result<void> sync(int cancel_fd) const;
    void keep() { given_.clear(); }

private:
    Result<void> give_name(const handoff::RamBlock& block, const std::string& path);

    std::vector<std::string> given_;
    std::vector<UniqueFd> on_disk_;
};

// Opens and locks a block that link() has named. A symbolic link is followed to a hugetlbfs only. kBusy: a
// guest runs on it.
Result<UniqueFd> open_named_ram(const std::string& directory, const std::string& name);

} // namespace liveupdate::supervisor
