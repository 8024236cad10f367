// The update records of one VM, one JSON line each, oldest first, in an append-only file.
#pragma once

#include <string>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "supervisor/record.hpp"

namespace liveupdate::supervisor {

constexpr size_t kHistoryKept = 1000; // records; older ones go

// What a history file holds.
struct HistoryContent {
    std::vector<UpdateRecord> records; // oldest first, at most kHistoryKept
    std::vector<std::string> warnings; // lines that were passed over and why, one sentence each
    uint64_t whole_bytes = 0;          // up to the end of the last line that was written to its end
};

// Changes nothing. A file that is not there is an empty history; a torn last line (the writer died in it) and
// lines that are no record are passed over with a warning.
Result<HistoryContent> read_history(const std::string& path);

// The writer; one at a time for a file.
class History {
public:
    // Makes the file (0644) when it is missing, and cuts off a torn last line.
    static Result<History> open(std::string path);

    // On success the record is on the disk. On failure the file holds the former records, and the next append
    // may be tried.
    Result<void> append(const UpdateRecord& record);

    // The newest `limit`, the newest first.
    std::vector<UpdateRecord> newest(size_t limit) const;
    // What open() passed over or repaired, for the log.
    const std::vector<std::string>& warnings() const { return warnings_; }

private:
    History() = default;
    Result<void> compact();

    std::string path_;
    UniqueFd file_;
    uint64_t size_ = 0; // of the file, all of it whole lines
    size_t lines_ = 0;  // records in the file, which may be more than are kept
    std::vector<UpdateRecord> records_;
    std::vector<std::string> warnings_;
};

} // namespace liveupdate::supervisor
