// What is written to disks and sent over the network by the Linux guest, and checked by guest and host alike:
// every byte follows from where it belongs.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>

namespace linux_guest {

inline constexpr std::size_t kBlockBytes = 4096;
inline constexpr std::uint64_t kBlockMagic = 0x6b636f6c42554c00; // "\0LUBlock" read as bytes

// SplitMix64's finaliser: each bit of the result depends on each bit of the argument.
constexpr std::uint64_t mix(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

// The beginning of a block that says whose it is; the rest of the block follows from it.
struct BlockHeader {
    std::uint64_t magic; // kBlockMagic
    std::uint32_t disk;
    std::uint32_t generation; // how often the block was written; 0: never
    std::uint64_t block;
    std::uint64_t checksum;
};

using Block = std::array<std::uint64_t, kBlockBytes / sizeof(std::uint64_t)>;

// `block` becomes what generation `generation` of it is: all zero for 0.
inline void fill_block(Block& content, std::uint32_t disk, std::uint64_t block, std::uint32_t generation) {
    content.fill(0);
    if (generation == 0) return;
    BlockHeader header{kBlockMagic, disk, generation, block, 0};
    const std::uint64_t key = mix(mix(block) + (std::uint64_t{disk} << 32) + generation);
    for (std::size_t i = sizeof(header) / 8; i < content.size(); ++i) {
        content[i] = mix(key + i);
        header.checksum += content[i] * (2 * i + 1);
    }
    std::memcpy(content.data(), &header, sizeof(header));
}

inline BlockHeader header_of(const Block& content) {
    BlockHeader header;
    std::memcpy(&header, content.data(), sizeof(header));
    return header;
}

// One block's part in the hash of a whole disk's model: the sum over all blocks.
constexpr std::uint64_t model_part(std::uint64_t block, std::uint32_t generation) {
    return generation == 0 ? 0 : mix(mix(block) ^ generation);
}

// Byte `offset` of an endless stream.
constexpr std::uint8_t stream_byte(std::uint64_t stream, std::uint64_t offset) {
    return static_cast<std::uint8_t>(mix(mix(stream) + offset / 8) >> (offset % 8 * 8));
}

inline void fill_stream(std::span<std::uint8_t> bytes, std::uint64_t stream, std::uint64_t offset) {
    std::size_t i = 0;
    while (i < bytes.size()) {
        std::uint64_t word = mix(mix(stream) + (offset + i) / 8) >> ((offset + i) % 8 * 8);
        do {
            bytes[i++] = static_cast<std::uint8_t>(word);
            word >>= 8;
        } while (i < bytes.size() && (offset + i) % 8 != 0);
    }
}

// The first byte that is not the stream's, as its place in `bytes`; bytes.size() if all are.
inline std::size_t stream_mismatch(
    std::span<const std::uint8_t> bytes, std::uint64_t stream, std::uint64_t offset) {
    std::size_t i = 0;
    while (i < bytes.size()) {
        std::uint64_t word = mix(mix(stream) + (offset + i) / 8) >> ((offset + i) % 8 * 8);
        do {
            if (bytes[i] != static_cast<std::uint8_t>(word)) return i;
            ++i;
            word >>= 8;
        } while (i < bytes.size() && (offset + i) % 8 != 0);
    }
    return bytes.size();
}

// The TCP stream both ways, and its port on the host.
inline constexpr std::uint64_t kGuestToHost = 1, kHostToGuest = 2;
inline constexpr std::uint16_t kTcpPort = 7001;

} // namespace linux_guest
