// /dev/kvm: what this host's KVM can do, asked once.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <string>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "vmm/kvm/abi.hpp"

namespace liveupdate::vmm {

// A KVM ioctl; the error names it.
Result<int> kvm_ioctl(int fd, unsigned long request, void* argument, std::string_view name);
Result<int> kvm_ioctl(int fd, unsigned long request, unsigned long argument, std::string_view name);

// The argument of KVM's calls that take a table: a count, four bytes, then the entries. Laid out here because
// the kernel's own structures end in flexible arrays, which its headers misplace under C++.
template <typename Entry>
class KvmTable {
public:
    explicit KvmTable(size_t count) : words_(1 + (count * sizeof(Entry) + 7) / 8) { set_count(count); }
    void* data() { return words_.data(); }
    Entry* entries() { return reinterpret_cast<Entry*>(words_.data() + 1); }
    uint32_t count() const { return static_cast<uint32_t>(words_[0]); }
    void set_count(size_t count) { words_[0] = count; } // little-endian: the four bytes behind are 0

private:
    std::vector<uint64_t> words_;
};

class KvmSystem {
public:
    // Takes /dev/kvm, opened by the supervisor; refuses another API version or a missing essential extension
    // (irqchip, PIT2, immediate_exit, user memory) in words.
    static Result<KvmSystem> from(UniqueFd kvm);
    // The same answers beside another descriptor of it.
    Result<KvmSystem> duplicate() const;

    int fd() const { return fd_.get(); }
    int extension(unsigned long capability) const; // 0: not there
    size_t run_mapping_size() const { return run_size_; }
    size_t xsave_size() const { return xsave_size_; } // bytes, at least 4096
    const std::vector<uint32_t>& msr_indices() const { return msrs_; }
    // Asks each time, which takes some 1 ms where CPUID itself is emulated.
    Result<std::vector<kvm_cpuid_entry2>> supported_cpuid() const;

private:
    explicit KvmSystem(UniqueFd fd) : fd_(std::move(fd)) {}
    Result<void> ask();
    Result<void> ask_msrs();

    UniqueFd fd_;
    size_t run_size_ = 0;
    size_t xsave_size_ = kXsaveBytes;
    std::vector<uint32_t> msrs_;
};

} // namespace liveupdate::vmm
