#include "supervisor/history.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor {
namespace {

// The file is written anew only after this many records too many, so that most appends are only appends.
constexpr size_t kSlack = 250;

std::string to_line(const UpdateRecord& record) {
    // `replace`: a reason may quote bytes of a peer's that are no UTF-8.
    return to_json(record).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

void trim(std::vector<UpdateRecord>& records) {
    if (records.size() > kHistoryKept)
        records.erase(records.begin(), records.end() - static_cast<std::ptrdiff_t>(kHistoryKept));
}

Result<UpdateRecord> parse_line(std::string_view line) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (json.is_discarded()) return Error(ErrorCode::kInvalid, "not JSON");
    return record_from_json(json);
}

} // namespace

Result<HistoryContent> read_history(const std::string& path) {
    auto text = fd::read_file(path);
    HistoryContent content;
    if (!text && text.error().system_errno == ENOENT) return content;
    if (!text) return std::move(text).error().context("read the history");
    const std::string_view all = *text;
    size_t number = 0;
    size_t at = 0;
    for (size_t end = all.find('\n'); end != std::string_view::npos; end = all.find('\n', at)) {
        ++number;
        auto record = parse_line(all.substr(at, end - at));
        if (record)
            content.records.push_back(std::move(*record));
        else
            content.warnings.push_back(
                path + ":" + std::to_string(number) + ": line passed over: " + record.error().message);
        at = end + 1;
    }
    content.whole_bytes = at;
    if (at < all.size())
        content.warnings.push_back(
            path + ":" + std::to_string(number + 1) +
            ": the last line is torn and was passed over; its writer was stopped while writing");
    trim(content.records);
    return content;
}

Result<History> History::open(std::string path) {
    TRY_ASSIGN(HistoryContent content, read_history(path));
    History history;
    TRY_ASSIGN(history.file_, fd::open(path, O_WRONLY | O_CREAT | O_APPEND, 0644));
    if (::ftruncate(history.file_.get(), static_cast<off_t>(content.whole_bytes)) < 0)
        return Error::from_errno("cut off the torn end of " + path);
    history.path_ = std::move(path);
    history.size_ = content.whole_bytes;
    history.lines_ = content.records.size();
    history.records_ = std::move(content.records);
    history.warnings_ = std::move(content.warnings);
    return history;
}

Result<void> History::append(const UpdateRecord& record) {
    const std::string line = to_line(record);
    auto written = fd::write_all(file_.get(), line.data(), line.size());
    if (written && ::fsync(file_.get()) < 0) written = Error::from_errno("fsync");
    if (!written) {
        // Best effort: the reader passes over a torn line too.
        static_cast<void>(!::ftruncate(file_.get(), static_cast<off_t>(size_)));
        return std::move(written).context("write to the history " + path_);
    }
    size_ += line.size();
    ++lines_;
    records_.push_back(record);
    trim(records_);
    if (lines_ > kHistoryKept + kSlack) return compact();
    return {};
}

Result<void> History::compact() {
    std::string text;
    for (const auto& record : records_)
        text += to_line(record);
    TRY(fd::write_file_atomically(path_, text).context("shorten the history"));
    TRY_ASSIGN(file_, fd::open(path_, O_WRONLY | O_APPEND));
    size_ = text.size();
    lines_ = records_.size();
    return {};
}

std::vector<UpdateRecord> History::newest(size_t limit) const {
    const size_t count = std::min(limit, records_.size());
    return {records_.rbegin(), records_.rbegin() + static_cast<std::ptrdiff_t>(count)};
}

} // namespace liveupdate::supervisor
