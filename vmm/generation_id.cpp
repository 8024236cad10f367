#include "vmm/generation_id.hpp"

#include <sys/random.h>

#include <array>
#include <utility>

namespace liveupdate::vmm {

Result<void> GenerationId::draw(const handoff::proto::Machine& machine, const GuestMemory& memory) {
    std::array<uint8_t, 16> bytes{};
    if (machine.generation_id_gpa() == 0) return {};
    if (machine.generation_id_gpa() != kGenerationIdGpa)
        return Error(ErrorCode::kRefused, "the guest's generation id lies at " +
                                              describe_range(machine.generation_id_gpa(), bytes.size()) +
                                              ", where this build has none");
    if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size()))
        return Error::from_errno("draw a generation id");
    return memory.write(kGenerationIdGpa, bytes);
}

Result<void> GenerationId::renew(const handoff::proto::Machine& machine, const GuestMemory& memory) {
    TRY(draw(machine, memory));
    renewed_ = machine.generation_id_gpa() != 0;
    return {};
}

void GenerationId::announce() {
    if (!std::exchange(renewed_, false)) return;
    line_.set(true);
    line_.set(false);
}

} // namespace liveupdate::vmm
