#include "handoff/save/source.hpp"

#include <fcntl.h>
#include <sys/stat.h>

namespace liveupdate::handoff::save {
namespace {

class FileQueue final : public ReadQueue {
public:
    FileQueue(DirectFile& file, unsigned depth, Engine wanted) : queue_(file, depth, wanted) {}
    Result<void> read(uint64_t offset, std::span<std::byte> into, uint32_t& pending) override {
        return queue_.read(offset, into, pending);
    }
    Result<void> await(const uint32_t& pending) override { return queue_.await(pending); }
    Engine engine() const { return queue_.engine(); }

private:
    IoQueue queue_;
};

} // namespace

Result<std::unique_ptr<Source>> FileSource::open(const std::string& path) {
    TRY_ASSIGN(auto file, DirectFile::open(path, O_RDONLY | O_NONBLOCK));
    return std::unique_ptr<Source>(new FileSource(std::move(file)));
}

Result<std::unique_ptr<Source>> FileSource::adopt(UniqueFd opened, std::string name) {
    TRY_ASSIGN(auto file, DirectFile::adopt(std::move(opened), std::move(name)));
    return std::unique_ptr<Source>(new FileSource(std::move(file)));
}

Result<uint64_t> FileSource::size() const {
    struct stat status {};
    if (::fstat(fd(), &status) < 0) return Error::from_errno("stat");
    if (!S_ISREG(status.st_mode)) return Error(ErrorCode::kRefused, "this is no file");
    return static_cast<uint64_t>(status.st_size);
}

Result<std::unique_ptr<ReadQueue>> FileSource::queue(unsigned depth, Engine wanted) {
    auto queue = std::make_unique<FileQueue>(*file_, depth, wanted);
    if (queue->engine() != wanted) without_ring_ = true;
    return std::unique_ptr<ReadQueue>(std::move(queue));
}

std::vector<std::string> FileSource::notes() const {
    std::vector<std::string> notes;
    if (!file_->direct())
        notes.push_back("the file system of " + file_->path() +
                        " does not take O_DIRECT; RAM was read through the host's page cache");
    if (without_ring_) notes.emplace_back("io_uring cannot be used here; RAM was read call by call");
    return notes;
}

} // namespace liveupdate::handoff::save
