// A packet of the session protocol from a hostile peer, with the descriptors that its manifest would need.
#include <string>

#include "handoff/base/fd.hpp"
#include "handoff/manifest.hpp"
#include "handoff/negotiation.hpp"
#include "handoff/proto/session.pb.h"
#include "handoff/shared_memory.hpp"

namespace {

using namespace liveupdate;

void take(const handoff::proto::Manifest& message) {
    handoff::NamedFds fds;
    for (const auto& block : message.blocks()) {
        if (fds.size() == 4) break;
        const uint64_t size = block.size() <= 1 << 20 ? block.size() : 4096;
        if (auto file = handoff::create_sealed_memfd("block", size)) fds[block.name()] = std::move(*file);
    }
    static_cast<void>(handoff::take_manifest(message, fds));
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    handoff::proto::Message message;
    if (!message.ParseFromArray(data, static_cast<int>(size))) return 0;
    if (message.has_launch()) take(message.launch().manifest());
    if (message.has_prepare()) take(message.prepare().manifest());
    if (message.has_adopted()) take(message.adopted().manifest());
    if (message.has_offer() && message.offer().saves_size() < 64) {
        std::vector<handoff::SectionInfo> sections;
        for (const auto& saved : message.offer().saves())
            sections.push_back({saved.kind(), 0, saved.newest(), 4096});
        static_cast<void>(handoff::negotiate(message.offer(), message.offer(), sections));
    }
    return 0;
}
