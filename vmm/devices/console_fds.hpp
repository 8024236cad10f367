// Checks and settings of the fds a console is made of. They came from another process and are not trusted to
// be what they are said to be. Used by console.cpp only.
#pragma once

#include "handoff/base/result.hpp"

namespace liveupdate::vmm {

Result<void> set_nonblocking(int fd);

// A regular file or character device, open for writing with O_APPEND.
Result<void> check_console_file(int fd);
// The master of a pseudo-terminal; made non-blocking.
Result<void> prepare_console_pty(int fd);
// A listening unix stream socket; made non-blocking.
Result<void> prepare_console_listener(int fd);
// A unix stream socket that does not listen; made non-blocking.
Result<void> prepare_console_client(int fd);

} // namespace liveupdate::vmm
