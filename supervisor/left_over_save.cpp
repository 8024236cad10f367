#include "supervisor/left_over_save.hpp"

#include <sys/stat.h>

#include <algorithm>

#include "handoff/save/reader.hpp"
#include "supervisor/named_ram.hpp"

namespace liveupdate::supervisor {
namespace {

bool is_among(const std::string& path, std::span<const handoff::RamBlock> ours) {
    struct stat named {};
    if (::stat(path.c_str(), &named) < 0) return false;
    return std::any_of(ours.begin(), ours.end(), [&](const handoff::RamBlock& block) {
        struct stat open {};
        return ::fstat(block.file.get(), &open) == 0 && open.st_dev == named.st_dev &&
               open.st_ino == named.st_ino;
    });
}

Error not_looked_at(const Error& why, const std::string& path) {
    return Error(why).context(
        path + " may be all there is of a guest, and cannot be looked at; move it away to save here");
}

} // namespace

Result<void> check_left_over(const std::string& directory, std::span<const handoff::RamBlock> ours) {
    const std::string path = directory + "/" + std::string(handoff::save::kNewFileName);
    const auto left = handoff::save::Reader::open(path);
    if (!left) {
        // There is none, or it is not whole: no guest has been ended for it.
        if (left.error().system_errno == ENOENT || left.error().code == ErrorCode::kRefused) return {};
        return not_looked_at(left.error(), path);
    }
    if ((*left)->guest().qemu().image_sums_size() > 0) return {}; // what is beside is a copy
    bool beside = false;
    for (const handoff::save::BlockSpec& block : (*left)->header().specs()) {
        if (block.place != handoff::save::Place::kBeside) continue;
        // The guest has run on, on the RAM that lies there, or that is gone.
        if (is_among(directory + "/" + block.name, ours)) return {};
        const auto ram = open_named_ram(directory, block.name);
        if (!ram && ram.error().system_errno == ENOENT) return {};
        if (!ram) return not_looked_at(ram.error(), path);
        beside = true;
    }
    if (!beside) return {};
    return Error(ErrorCode::kRefused,
        path +
            " is a guest that was being saved in place when its supervisor ended, and may be all there is of "
            "it: rename it to " +
            std::string(handoff::save::kFileName) +
            " to restore it, or remove it and the RAM beside it if that guest has run on since");
}

} // namespace liveupdate::supervisor
