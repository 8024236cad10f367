#include "supervisor/ram_image.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "handoff/base/fd.hpp"
#include "handoff/save/checksum.hpp"
#include "handoff/save/parallel.hpp"

namespace liveupdate::supervisor {
namespace {

using namespace handoff::save;

constexpr unsigned kThreads = 2;

using Chunk = std::vector<std::byte>; // kChunk bytes

bool is_zero(std::span<const std::byte> bytes) {
    return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

PageMap pages_with_data(std::span<const std::byte> bytes) {
    PageMap pages(pages_in(bytes.size()));
    for (uint64_t page = 0; page < pages.pages(); ++page)
        if (!is_zero(bytes.subspan(page * kPage, kPage))) pages.set(page);
    return pages;
}

uint64_t sum_of(std::span<const std::byte> bytes, const PageMap& data) {
    return data.count() == 0 ? 0 : checksum({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

Result<void> read_at(int file, std::span<std::byte> bytes, uint64_t offset) {
    for (size_t at = 0; at < bytes.size();) {
        const ssize_t n =
            ::pread(file, bytes.data() + at, bytes.size() - at, static_cast<off_t>(offset + at));
        if (n < 0 && errno != EINTR) return Error::from_errno("read");
        if (n == 0) return Error(ErrorCode::kRefused, "it ends too early");
        at += n < 0 ? 0 : static_cast<size_t>(n);
    }
    return {};
}

Result<void> write_chunks(
    int file, std::span<const std::byte> ram, const PageMap& which, Work& work, std::vector<uint64_t>& sums) {
    Chunk copy(kChunk);
    for (uint64_t chunk = 0; work.take(chunk);) {
        const PageRun pages = pages_of_chunk(chunk, which.pages());
        const std::span<std::byte> bytes(copy.data(), pages.count * kPage);
        std::fill(bytes.begin(), bytes.end(), std::byte{0});
        which.runs(pages, [&](PageRun run) {
            std::memcpy(bytes.data() + (run.first - pages.first) * kPage, ram.data() + run.first * kPage,
                run.count * kPage);
        });
        const PageMap data = pages_with_data(bytes);
        sums[chunk] = sum_of(bytes, data);
        Result<void> written;
        data.runs({0, data.pages()}, [&](PageRun run) {
            if (written)
                written = fd::pwrite_all(file, bytes.data() + run.first * kPage, run.count * kPage,
                    (pages.first + run.first) * kPage);
        });
        TRY(written);
    }
    return {};
}

Result<void> read_chunks(
    int file, uint64_t size, const std::vector<uint64_t>& sums, std::span<std::byte> ram, Work& work) {
    Chunk copy(kChunk);
    for (uint64_t chunk = 0; work.take(chunk);) {
        const PageRun pages = pages_of_chunk(chunk, pages_in(size));
        const std::span<std::byte> bytes(copy.data(), pages.count * kPage);
        TRY(read_at(file, bytes, pages.first * kPage));
        const PageMap data = pages_with_data(bytes);
        if (sum_of(bytes, data) != sums[chunk])
            return Error(ErrorCode::kRefused,
                "chunk " + std::to_string(chunk) + " (1 MiB) is damaged: its checksum is wrong");
        if (ram.empty()) continue;
        data.runs({0, data.pages()}, [&](PageRun run) {
            std::memcpy(ram.data() + (pages.first + run.first) * kPage, bytes.data() + run.first * kPage,
                run.count * kPage);
        });
    }
    return {};
}

Result<void> sum_chunks(int file, uint64_t size, Work& work, std::vector<uint64_t>& sums) {
    Chunk copy(kChunk);
    for (uint64_t chunk = 0; work.take(chunk);) {
        const PageRun pages = pages_of_chunk(chunk, pages_in(size));
        const std::span<std::byte> bytes(copy.data(), pages.count * kPage);
        TRY(read_at(file, bytes, pages.first * kPage));
        sums[chunk] = sum_of(bytes, pages_with_data(bytes));
    }
    return {};
}

} // namespace

Result<std::vector<uint64_t>> sum_ram_image(const std::string& path, uint64_t size, int cancel_fd) {
    TRY_ASSIGN(const UniqueFd file, fd::open(path, O_RDWR | O_NOFOLLOW));
    std::vector<uint64_t> sums(chunks_in(size));
    Work work(sums.size(), cancel_fd);
    TRY(in_threads(kThreads, work, [&] { return sum_chunks(file.get(), size, work, sums); }).context(path));
    if (::fsync(file.get()) < 0) return Error::from_errno("sync " + path);
    return sums;
}

Result<std::vector<uint64_t>> write_ram_image(
    const std::string& path, std::span<const std::byte> ram, const PageMap& which, int cancel_fd) {
    TRY_ASSIGN(const UniqueFd file, fd::open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
    std::vector<uint64_t> sums(chunks_in(ram.size()));
    const auto written = [&]() -> Result<void> {
        if (::ftruncate(file.get(), static_cast<off_t>(ram.size())) < 0) return Error::from_errno("size");
        Work work(sums.size(), cancel_fd);
        TRY(in_threads(kThreads, work, [&] { return write_chunks(file.get(), ram, which, work, sums); }));
        if (::fsync(file.get()) < 0) return Error::from_errno("sync");
        return {};
    }();
    if (written) return sums;
    ::unlink(path.c_str());
    return Error(written.error()).context(path);
}

Result<void> read_ram_image(
    const std::string& path, uint64_t size, const std::vector<uint64_t>& sums, std::span<std::byte> ram) {
    TRY_ASSIGN(const UniqueFd file, fd::open(path, O_RDONLY | O_NOFOLLOW));
    struct stat status {};
    if (::fstat(file.get(), &status) < 0) return Error::from_errno("stat " + path);
    if (static_cast<uint64_t>(status.st_size) != size || sums.size() != chunks_in(size))
        return Error(ErrorCode::kRefused,
            path + " has " + std::to_string(status.st_size) + " bytes and " + std::to_string(sums.size()) +
                " checksums; the RAM it holds has " + std::to_string(size) + " bytes");
    Work work(sums.size());
    return in_threads(kThreads, work, [&] {
        return read_chunks(file.get(), size, sums, ram, work);
    }).context(path);
}

} // namespace liveupdate::supervisor
