#include "vmm/kvm/unended_floor.hpp"

#include <utility>

namespace liveupdate::vmm {

int64_t UnendedFloor::look(int64_t unended, int64_t ended) {
    if (unended <= 0) {
        forget();
        return 0;
    }
    if (least_ == 0 || unended < least_ || unended > least_ + 1) {
        least_ = unended;
        ended_at_last_ = ended;
        steady_ = 0;
        return 0;
    }
    if (ended != std::exchange(ended_at_last_, ended)) ++steady_;
    return steady_ < kSteady ? 0 : least_;
}

} // namespace liveupdate::vmm
