// What a supervisor that died in a save has left in the folder: it may be all there is of a guest.
#pragma once

#include <span>
#include <string>

#include "handoff/ram_block.hpp"

namespace liveupdate::supervisor {

// Whether a guest, whose RAM blocks are `ours`, may be saved into `directory`, where guest.save.new is then
// written anew. kRefused in words: a guest that was saved in place is whole there and in its RAM. kBusy: the
// RAM has an owner, who is another guest or about to end. Of a version that this build does not read, or not
// to be looked at: refused as well, with the reason.
Result<void> check_left_over(const std::string& directory, std::span<const handoff::RamBlock> ours);

} // namespace liveupdate::supervisor
