#include "handoff/save/nbd_source.hpp"

#include <algorithm>

#include "handoff/save/nbd_connection.hpp"
#include "handoff/save/nbd_uri.hpp"

namespace liveupdate::handoff::save {
namespace {

constexpr size_t kMostConnections = 8;

} // namespace

// A connection for as long as the queue lives.
class NbdSource::Queue final : public ReadQueue {
public:
    Queue(NbdSource& source, std::unique_ptr<NbdConnection> connection, unsigned depth)
        : source_(source), connection_(std::move(connection)), depth_(depth) {}
    // What is in flight comes first: its bytes must not come to the next user, and a server that still writes
    // to a connection that was closed may end of that (nbdkit 1.32: an assertion).
    ~Queue() override {
        connection_->drain();
        if (!connection_->good()) connection_.reset();
        source_.put_back(std::move(connection_));
    }

    Result<void> read(uint64_t offset, std::span<std::byte> into, uint32_t& pending) override {
        while (connection_->in_flight() >= depth_)
            TRY(connection_->progress());
        return connection_->begin_read(offset, into, pending);
    }

    Result<void> await(const uint32_t& pending) override {
        while (pending > 0)
            TRY(connection_->progress());
        return {};
    }

private:
    NbdSource& source_;
    std::unique_ptr<NbdConnection> connection_;
    const size_t depth_;
};

NbdSource::NbdSource(const LibNbd& nbd, std::string uri, NbdOptions options)
    : nbd_(nbd), uri_(std::move(uri)), options_(options) {}

NbdSource::~NbdSource() = default;

Result<std::unique_ptr<Source>> NbdSource::open(const std::string& uri, NbdOptions options) {
    TRY(check_nbd_uri(uri));
    TRY_ASSIGN(const LibNbd* const nbd, LibNbd::load());
    std::unique_ptr<NbdSource> source(new NbdSource(*nbd, uri, options));
    TRY_ASSIGN(auto first, source->connect());
    TRY_ASSIGN(source->size_, first->size());
    if (first->several_see_the_same()) source->most_ = kMostConnections;
    source->idle_.push_back(std::move(first));
    return std::unique_ptr<Source>(std::move(source));
}

Result<std::unique_ptr<NbdConnection>> NbdSource::connect() const {
    return NbdConnection::open(nbd_, uri_, options_);
}

Result<std::unique_ptr<ReadQueue>> NbdSource::queue(unsigned depth, Engine) {
    TRY_ASSIGN(auto connection, take());
    return std::unique_ptr<ReadQueue>(
        std::make_unique<Queue>(*this, std::move(connection), std::max(1u, depth)));
}

void NbdSource::close_idle() {
    std::vector<std::unique_ptr<NbdConnection>> idle; // ended without the lock
    const std::lock_guard lock(mutex_);
    idle.swap(idle_);
}

Result<std::unique_ptr<NbdConnection>> NbdSource::take() {
    {
        std::unique_lock lock(mutex_);
        const uint64_t ticket = next_ticket_++;
        changed_.wait(lock, [&] { return ticket == turn_ && used_ < most_; });
        ++turn_;
        ++used_;
        changed_.notify_all();
        if (!idle_.empty()) {
            auto connection = std::move(idle_.back());
            idle_.pop_back();
            return connection;
        }
    }
    auto made = connect();
    // What the server has now may be another file.
    if (made) {
        const auto size = (*made)->size();
        if (!size)
            made = size.error();
        else if (*size != size_)
            made = Error(ErrorCode::kSystem, uri_ + " has " + std::to_string(*size) + " bytes now and had " +
                                                 std::to_string(size_) +
                                                 "; let the server give out the same file again");
    }
    if (!made) put_back(nullptr);
    return made;
}

void NbdSource::put_back(std::unique_ptr<NbdConnection> connection) {
    const std::lock_guard lock(mutex_);
    --used_;
    if (connection) idle_.push_back(std::move(connection));
    changed_.notify_all();
}

} // namespace liveupdate::handoff::save
