// Whether somebody listens at a unix socket.
#pragma once

#include <string>

namespace liveupdate {

// As the kernel tells it, without a connection: some programs take whoever connects to look for the peer that
// they wait for, and the socket's file is there before anybody listens. `path` as the listener has bound it.
bool is_listening(const std::string& path);

} // namespace liveupdate
