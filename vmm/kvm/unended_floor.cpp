#include "vmm/kvm/unended_floor.hpp"

namespace liveupdate::vmm {

int64_t UnendedFloor::look(int64_t unended, int64_t ended) {
    if (unended <= 0) {
        forget();
        return 0;
    }
    if (least_ == 0 || unended < least_ || unended > least_ + 1) {
        least_ = unended;
        ended_at_first_ = ended;
        return 0;
    }
    return ended - ended_at_first_ < kSteady ? 0 : least_;
}

} // namespace liveupdate::vmm
