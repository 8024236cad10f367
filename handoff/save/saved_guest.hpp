// The state in the file of a saved guest, from and to bytes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/save/layout.hpp"
#include "handoff/save/saved_guest.pb.h"
#include "handoff/transfer_area.hpp"

namespace liveupdate::handoff::save {

// From anybody: everything is there, bounded, and nothing in it is unknown to this build (but in `source`,
// where it does no harm); else kRefused in words. RAM blocks and regions are not looked at.
Result<proto::SavedGuest> parse_saved_guest(std::string_view bytes);

// The sections, in the order of the file.
std::vector<SectionInfo> sections_of(const proto::SavedGuest& guest);

// Every block of the file is one of the manifest, of the same size, and each of the manifest's is in the
// file.
Result<void> check_blocks_against(const proto::Manifest& manifest, const std::vector<BlockSpec>& blocks);

} // namespace liveupdate::handoff::save
