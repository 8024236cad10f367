#include "handoff/save/nbd_connection.hpp"

#include <poll.h>

#include <algorithm>

#include "handoff/base/words.hpp"

namespace liveupdate::handoff::save {
namespace {

constexpr size_t kMostAtOnce = size_t{1} << 20; // bytes; every server takes 32 MiB, and most no more
constexpr size_t kMostWords = 300;

std::string seconds(std::chrono::milliseconds span) {
    const auto ms = span.count();
    return ms % 1000 == 0 ? std::to_string(ms / 1000) + " s" : std::to_string(ms) + " ms";
}

// No socket or no export; or nobody who answers.
Error not_reached(Error error) {
    if (error.code != ErrorCode::kSystem || error.system_errno == EACCES || error.system_errno == EPERM)
        return error;
    error.code = error.system_errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kPeerGone;
    return error;
}

} // namespace

NbdConnection::NbdConnection(const LibNbd& nbd, const std::string& uri, const NbdOptions& options)
    : nbd_(nbd), uri_(uri), options_(options) {}

NbdConnection::~NbdConnection() {
    if (handle_ != nullptr) nbd_.close(handle_);
}

Result<std::unique_ptr<NbdConnection>> NbdConnection::open(
    const LibNbd& nbd, const std::string& uri, const NbdOptions& options) {
    std::unique_ptr<NbdConnection> connection(new NbdConnection(nbd, uri, options));
    TRY(connection->connect());
    return connection;
}

Result<void> NbdConnection::connect() {
    handle_ = nbd_.create();
    if (handle_ == nullptr) return failed("make a connection");
    if (nbd_.set_uri_allow_transports(handle_, LIBNBD_ALLOW_TRANSPORT_TCP | LIBNBD_ALLOW_TRANSPORT_UNIX) <
            0 ||
        nbd_.set_uri_allow_tls(handle_, LIBNBD_TLS_DISABLE) < 0)
        return failed("prepare a connection");
    if (nbd_.aio_connect_uri(handle_, uri_.c_str()) < 0) return not_reached(failed("connect to " + uri_));
    while (nbd_.aio_is_ready(handle_) <= 0)
        if (auto waited = wait_once(); !waited)
            return not_reached(std::move(waited).error().context("connect to " + uri_));
    return {};
}

// libnbd's words begin with the name of its function, which is nothing to a user.
Error NbdConnection::failed(const std::string& what) const {
    const char* const said = nbd_.get_error();
    std::string why = printable(said != nullptr ? said : "the server has closed the connection", kMostWords);
    if (why.starts_with("nbd_"))
        if (const size_t end = why.find(": "); end != std::string::npos) why.erase(0, end + 2);
    return {ErrorCode::kSystem, what + ": " + why, nbd_.get_errno()};
}

Result<uint64_t> NbdConnection::size() const {
    const int64_t size = nbd_.get_size(handle_);
    if (size < 0) return failed("ask " + uri_ + " for its size");
    return static_cast<uint64_t>(size);
}

bool NbdConnection::several_see_the_same() const {
    return nbd_.can_multi_conn(handle_) > 0;
}

Result<void> NbdConnection::begin_read(uint64_t offset, std::span<std::byte> into, uint32_t& pending) {
    if (!good()) return why_not_good();
    while (!into.empty()) {
        const size_t size = std::min(into.size(), kMostAtOnce);
        Request& request = requests_.emplace_back();
        request = {this, offset, size, &pending, std::prev(requests_.end())};
        ++pending;
        nbd_completion_callback completion{};
        completion.callback = &NbdConnection::ended;
        completion.user_data = &request;
        if (nbd_.aio_pread(handle_, into.data(), size, offset, completion, 0) < 0) {
            const Error error = failed("read " + uri_ + " at " + std::to_string(offset));
            if (requests_.remove_if([&](const Request& each) { return &each == &request; }) > 0) --pending;
            return error;
        }
        offset += size;
        into = into.subspan(size);
    }
    return first_failure_; // what was sent may have ended already
}

// In the thread that is in progress(); 1: libnbd is to forget the request.
int NbdConnection::ended(void* of, int* error) {
    Request& request = *static_cast<Request*>(of);
    NbdConnection& connection = *request.connection;
    if (*error != 0 && connection.first_failure_)
        connection.first_failure_ = Error(ErrorCode::kSystem,
            "read " + connection.uri_ + " at " + std::to_string(request.offset) + ": " +
                std::strerror(*error),
            *error);
    --*request.pending;
    connection.requests_.erase(request.self);
    return 1;
}

Result<void> NbdConnection::progress() {
    if (!good()) return why_not_good();
    auto waited = wait_once();
    if (waited && first_failure_) return {};
    lost_ = !waited;
    if (!first_failure_) return first_failure_;
    return std::move(waited).context("read " + uri_);
}

Error NbdConnection::why_not_good() const {
    if (!first_failure_) return first_failure_.error();
    return {ErrorCode::kSystem, "read " + uri_ + ": the connection is lost", ENOTCONN};
}

void NbdConnection::drain() {
    while (!lost_ && !requests_.empty())
        lost_ = !wait_once();
}

Result<void> NbdConnection::wait_once() {
    const unsigned direction = nbd_.aio_get_direction(handle_);
    const bool reads = (direction & LIBNBD_AIO_DIRECTION_READ) != 0;
    const bool writes = (direction & LIBNBD_AIO_DIRECTION_WRITE) != 0;
    const int file = nbd_.aio_get_fd(handle_);
    if (file < 0 || direction == 0) return Error(ErrorCode::kSystem, "the connection is lost", ENOTCONN);
    pollfd polled[2] = {{file, static_cast<short>((reads ? POLLIN : 0) | (writes ? POLLOUT : 0)), 0},
        {options_.cancel_fd, POLLIN, 0}};
    const int ready = ::poll(polled, 2, static_cast<int>(options_.silence.count()));
    if (ready < 0 && errno == EINTR) return {};
    if (ready < 0) return Error::from_errno("wait for the server");
    if (ready == 0)
        return Error(
            ErrorCode::kSystem, "the server has said nothing for " + seconds(options_.silence), ETIMEDOUT);
    if (polled[1].revents != 0) return Error(ErrorCode::kAborted, "somebody asked for the work to stop");
    const bool lost = (polled[0].revents & (POLLHUP | POLLERR)) != 0;
    int done = 0;
    if (reads && ((polled[0].revents & POLLIN) != 0 || lost))
        done = nbd_.aio_notify_read(handle_);
    else if (writes && ((polled[0].revents & POLLOUT) != 0 || lost))
        done = nbd_.aio_notify_write(handle_);
    if (done < 0) {
        Error error = failed("");
        error.message.erase(0, 2);
        return error;
    }
    if (nbd_.aio_is_dead(handle_) > 0 || nbd_.aio_is_closed(handle_) > 0)
        return Error(ErrorCode::kSystem, "the server has closed the connection", ENOTCONN);
    return {};
}

} // namespace liveupdate::handoff::save
