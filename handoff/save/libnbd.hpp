// libnbd, loaded by whoever reads from an NBD server and not before:
// docs/adr/0011-libnbd-is-loaded-when-needed.md.
#pragma once

#include <libnbd.h>

#include "handoff/base/result.hpp"

namespace liveupdate::handoff::save {

// The functions of libnbd(3) that are used, without their prefix.
struct LibNbd {
    decltype(&::nbd_create) create = nullptr;
    decltype(&::nbd_close) close = nullptr;
    decltype(&::nbd_get_error) get_error = nullptr;
    decltype(&::nbd_get_errno) get_errno = nullptr;
    decltype(&::nbd_set_uri_allow_transports) set_uri_allow_transports = nullptr;
    decltype(&::nbd_set_uri_allow_tls) set_uri_allow_tls = nullptr;
    decltype(&::nbd_get_size) get_size = nullptr;
    decltype(&::nbd_can_multi_conn) can_multi_conn = nullptr;
    decltype(&::nbd_aio_connect_uri) aio_connect_uri = nullptr;
    decltype(&::nbd_aio_pread) aio_pread = nullptr;
    decltype(&::nbd_aio_get_fd) aio_get_fd = nullptr;
    decltype(&::nbd_aio_get_direction) aio_get_direction = nullptr;
    decltype(&::nbd_aio_notify_read) aio_notify_read = nullptr;
    decltype(&::nbd_aio_notify_write) aio_notify_write = nullptr;
    decltype(&::nbd_aio_is_ready) aio_is_ready = nullptr;
    decltype(&::nbd_aio_is_dead) aio_is_dead = nullptr;
    decltype(&::nbd_aio_is_closed) aio_is_closed = nullptr;

    // The same for all of the process, and for good. kUnsupported: it is not installed. Any thread.
    static Result<const LibNbd*> load();
};

} // namespace liveupdate::handoff::save
