#include "handoff/save/libnbd.hpp"

#include <dlfcn.h>

#include <memory>
#include <mutex>

namespace liveupdate::handoff::save {
namespace {

constexpr const char* kLibrary = "libnbd.so.0";

template <typename Function>
Result<void> find(void* library, const char* name, Function& out) {
    out = reinterpret_cast<Function>(::dlsym(library, name));
    if (out != nullptr) return {};
    return Error(ErrorCode::kUnsupported, std::string(kLibrary) + " has no " + name +
                                              "; install libnbd 1.14 or later (Debian's package libnbd0)");
}

Result<LibNbd> load_once() {
    void* const library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        const char* const why = ::dlerror();
        return Error(
            ErrorCode::kUnsupported, "reading from an NBD server needs libnbd, which cannot be loaded (" +
                                         std::string(why != nullptr ? why : kLibrary) +
                                         "); install the package libnbd0 (Debian) or libnbd (Fedora)");
    }
    LibNbd nbd;
    TRY(find(library, "nbd_create", nbd.create));
    TRY(find(library, "nbd_close", nbd.close));
    TRY(find(library, "nbd_get_error", nbd.get_error));
    TRY(find(library, "nbd_get_errno", nbd.get_errno));
    TRY(find(library, "nbd_set_uri_allow_transports", nbd.set_uri_allow_transports));
    TRY(find(library, "nbd_set_uri_allow_tls", nbd.set_uri_allow_tls));
    TRY(find(library, "nbd_get_size", nbd.get_size));
    TRY(find(library, "nbd_can_multi_conn", nbd.can_multi_conn));
    TRY(find(library, "nbd_aio_connect_uri", nbd.aio_connect_uri));
    TRY(find(library, "nbd_aio_pread", nbd.aio_pread));
    TRY(find(library, "nbd_aio_get_fd", nbd.aio_get_fd));
    TRY(find(library, "nbd_aio_get_direction", nbd.aio_get_direction));
    TRY(find(library, "nbd_aio_notify_read", nbd.aio_notify_read));
    TRY(find(library, "nbd_aio_notify_write", nbd.aio_notify_write));
    TRY(find(library, "nbd_aio_is_ready", nbd.aio_is_ready));
    TRY(find(library, "nbd_aio_is_dead", nbd.aio_is_dead));
    TRY(find(library, "nbd_aio_is_closed", nbd.aio_is_closed));
    return nbd;
}

} // namespace

// What could not be loaded is tried again: somebody may have installed it.
Result<const LibNbd*> LibNbd::load() {
    static std::mutex mutex;
    static std::unique_ptr<const LibNbd> loaded;
    const std::lock_guard lock(mutex);
    if (!loaded) {
        TRY_ASSIGN(const LibNbd nbd, load_once());
        loaded = std::make_unique<const LibNbd>(nbd);
    }
    return loaded.get();
}

} // namespace liveupdate::handoff::save
