#include "handoff/save/checksum.hpp"

#include <xxhash.h>

#include <memory>

namespace liveupdate::handoff::save {

uint64_t checksum(std::string_view bytes) {
    return ::XXH64(bytes.data(), bytes.size(), 0);
}

uint64_t sum_of_pages(const PageMap& written, PageRun pages, const std::byte* bytes) {
    struct Free {
        void operator()(XXH64_state_t* state) const { ::XXH64_freeState(state); }
    };
    if (!written.any(pages)) return 0;
    thread_local const std::unique_ptr<XXH64_state_t, Free> state(::XXH64_createState());
    ::XXH64_reset(state.get(), 0);
    written.runs(pages, [&](PageRun run) {
        ::XXH64_update(state.get(), bytes + (run.first - pages.first) * kPage, run.count * kPage);
    });
    return ::XXH64_digest(state.get());
}

} // namespace liveupdate::handoff::save
