// Request numbers of the KVM calls whose argument ends in a flexible array.
//
// A request number contains the size of its argument. Some versions of the kernel's headers (6.1 among them)
// give these structures another size and layout under C++ than under C, and so wrong numbers: here they are
// made from the sizes that C gives.
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>

namespace liveupdate::vmm {

struct KvmTableHeader {
    uint32_t count;
    uint32_t pad;
};
struct KvmListHeader {
    uint32_t count;
};
struct KvmXsaveArea {
    uint32_t words[1024];
};
inline constexpr size_t kXsaveBytes = sizeof(KvmXsaveArea);

inline constexpr unsigned long kGetMsrIndexList = _IOWR(KVMIO, 0x02, KvmListHeader);
inline constexpr unsigned long kGetSupportedCpuid = _IOWR(KVMIO, 0x05, KvmTableHeader);
inline constexpr unsigned long kSetGsiRouting = _IOW(KVMIO, 0x6a, KvmTableHeader);
inline constexpr unsigned long kGetMsrs = _IOWR(KVMIO, 0x88, KvmTableHeader);
inline constexpr unsigned long kSetMsrs = _IOW(KVMIO, 0x89, KvmTableHeader);
inline constexpr unsigned long kSetSignalMask = _IOW(KVMIO, 0x8b, KvmListHeader);
inline constexpr unsigned long kSetCpuid2 = _IOW(KVMIO, 0x90, KvmTableHeader);
inline constexpr unsigned long kGetXsave = _IOR(KVMIO, 0xa4, KvmXsaveArea);
inline constexpr unsigned long kSetXsave = _IOW(KVMIO, 0xa5, KvmXsaveArea);
inline constexpr unsigned long kGetXsave2 = _IOR(KVMIO, 0xcf, KvmXsaveArea);

// KVM_PRE_FAULT_MEMORY (Linux 6.11), which older headers lack.
inline constexpr unsigned long kCapPreFaultMemory = 236;
struct KvmPreFaultMemory {
    uint64_t gpa;
    uint64_t size;
    uint64_t flags;
    uint64_t padding[5];
};
inline constexpr unsigned long kPreFaultMemory = _IOWR(KVMIO, 0xd5, KvmPreFaultMemory);

} // namespace liveupdate::vmm
