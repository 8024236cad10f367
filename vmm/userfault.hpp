// Watching mapped memory for its first touch: Linux's Documentation/admin-guide/mm/userfaultfd.rst.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"

namespace liveupdate::vmm {

// Whoever touches a watched page that its file does not have waits until the page has been put there. Any
// thread.
class Userfault {
public:
    // kUnsupported: this kernel or this user cannot; the words end in `otherwise`, what to do instead.
    static Result<Userfault> open(const std::string& otherwise);

    // Page-aligned and mapped from a memfd or a file on tmpfs, shared or private. What is mapped private gets
    // pages of its own.
    Result<void> watch(std::span<std::byte> mapped) const;
    // No longer; whoever waits goes on, and what is missing is zero, as the kernel gives it by itself.
    void unwatch(std::span<std::byte> mapped) const;

    int fd() const { return file_.get(); } // readable: somebody waits
    // The address of the page that somebody waits for; nothing when nobody does any more.
    Result<std::optional<uint64_t>> next() const;
    // Puts a page there, or zeros, and lets those go on who wait for it. A page that is there already stays.
    Result<void> give(uint64_t address, std::span<const std::byte> page) const;
    Result<void> give_zeros(uint64_t address) const;
    // Puts pages there that nobody else may have put there: kInternal when one is there already, since
    // somebody then has zeros for what these hold.
    Result<void> fill(uint64_t address, std::span<const std::byte> pages) const;

private:
    Result<void> given(uint64_t address, int result) const;

    UniqueFd file_;
};

} // namespace liveupdate::vmm
