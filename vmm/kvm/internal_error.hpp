// What KVM says when it cannot go on: KVM_EXIT_INTERNAL_ERROR (KVM API document, section 5, "kvm_run").
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <optional>
#include <string>

namespace liveupdate::vmm {

// One phrase for a person: the kind of error, where the guest stood (`rip`, nothing when it cannot be read)
// and, of an instruction that KVM cannot emulate, its bytes. `page.exit_reason` is KVM_EXIT_INTERNAL_ERROR.
std::string describe_internal_error(const kvm_run& page, std::optional<uint64_t> rip);

} // namespace liveupdate::vmm
