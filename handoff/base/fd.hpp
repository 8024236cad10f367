// Factories of UniqueFd, named after the system call, always close-on-exec.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"

namespace liveupdate::fd {

Result<UniqueFd> open(const std::string& path, int flags, mode_t mode = 0);
Result<UniqueFd> dup(int fd);
Result<UniqueFd> memfd_create(const std::string& name, unsigned flags);
Result<UniqueFd> eventfd(unsigned initial);
Result<UniqueFd> pidfd_open(pid_t pid);
// A duplicate of another process's descriptor; needs the right to trace it.
Result<UniqueFd> pidfd_getfd(int pidfd, int number);
// type: SOCK_SEQPACKET or SOCK_STREAM.
Result<std::pair<UniqueFd, UniqueFd>> socketpair(int type);
Result<UniqueFd> unix_listen(const std::string& path, int type, int backlog);
Result<UniqueFd> unix_connect(const std::string& path, int type);
// For a listener that may hang with its queue full, where the other one would wait for good. kTimeout.
Result<UniqueFd> unix_connect(const std::string& path, int type, Deadline deadline);

// Reads a whole file; more than `limit` bytes is an error.
Result<std::string> read_file(const std::string& path, size_t limit = size_t{64} << 20);
// Writes beside, fsyncs, and renames: the former content stays whole whatever happens.
Result<void> write_file_atomically(const std::string& path, const std::string& content, mode_t mode = 0644);
Result<void> write_all(int fd, const void* data, size_t size);
Result<void> pwrite_all(int fd, const void* data, size_t size, uint64_t offset);

// True once every thread of the process behind `pidfd` is gone; never blocks.
bool process_gone(int pidfd);
Result<void> pidfd_send_signal(int pidfd, int signal);

} // namespace liveupdate::fd
