// What driver and block device say to each other: virtio 1.2, section 5.2.
#pragma once

#include <cstddef>
#include <cstdint>

namespace liveupdate::vmm::virtio::blk {

inline constexpr uint32_t kDeviceId = 2;
inline constexpr uint32_t kSectorBytes = 512;

inline constexpr uint64_t kFeatureSegMax = uint64_t{1} << 2;
inline constexpr uint64_t kFeatureReadOnly = uint64_t{1} << 5;
inline constexpr uint64_t kFeatureBlockSize = uint64_t{1} << 6;
inline constexpr uint64_t kFeatureFlush = uint64_t{1} << 9;
inline constexpr uint64_t kFeatureMultiQueue = uint64_t{1} << 12;
inline constexpr uint64_t kFeatureDiscard = uint64_t{1} << 13;
inline constexpr uint64_t kFeatureWriteZeroes = uint64_t{1} << 14;

inline constexpr uint32_t kRead = 0;
inline constexpr uint32_t kWrite = 1;
inline constexpr uint32_t kFlush = 4;
inline constexpr uint32_t kGetId = 8;
inline constexpr uint32_t kDiscard = 11;
inline constexpr uint32_t kWriteZeroes = 13;

inline constexpr uint8_t kOk = 0;
inline constexpr uint8_t kIoError = 1;
inline constexpr uint8_t kUnsupported = 2;

inline constexpr size_t kIdBytes = 20;

struct RequestHeader {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

// The data of a discard and of a write of zeroes.
struct Range {
    uint64_t sector;
    uint32_t sectors;
    uint32_t flags;
};
inline constexpr uint32_t kUnmap = 1;

struct Config {
    uint64_t capacity; // sectors
    uint32_t size_max;
    uint32_t seg_max;
    uint8_t geometry[4];
    uint32_t block_size;
    uint8_t topology[8];
    uint8_t writeback;
    uint8_t unused0;
    uint16_t queues;
    uint32_t max_discard_sectors;
    uint32_t max_discard_segments;
    uint32_t discard_sector_alignment;
    uint32_t max_write_zeroes_sectors;
    uint32_t max_write_zeroes_segments;
    uint8_t write_zeroes_may_unmap;
    uint8_t unused1[3];
};
static_assert(sizeof(RequestHeader) == 16 && sizeof(Range) == 16);
static_assert(offsetof(Config, queues) == 34 && offsetof(Config, write_zeroes_may_unmap) == 56);

} // namespace liveupdate::vmm::virtio::blk
