// What names a saved guest that an NBD server has:
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md
#pragma once

#include <string>
#include <string_view>

#include "handoff/base/result.hpp"

namespace liveupdate::handoff::save {

// Whether that is meant for an NBD server, well-formed or not; else it is a path.
bool is_nbd_uri(std::string_view where);

// kInvalid, in words: it is neither nbd://HOST[:PORT]/EXPORT nor nbd+unix:///EXPORT?socket=/PATH. What it
// names is looked at by libnbd.
Result<void> check_nbd_uri(const std::string& uri);

} // namespace liveupdate::handoff::save
