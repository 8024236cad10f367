#include "handoff/build_id.hpp"

#include <elf.h>
#include <link.h>

#include <cstring>

namespace liveupdate::handoff {
namespace {

std::string to_hex(const unsigned char* bytes, size_t size) {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string hex;
    for (size_t i = 0; i < size; ++i) {
        hex += kDigits[bytes[i] >> 4];
        hex += kDigits[bytes[i] & 15];
    }
    return hex;
}

// Our own image, mapped by the kernel: its notes are trusted as far as the program itself is.
std::string find_in(const char* notes, size_t size) {
    for (size_t at = 0; at + sizeof(ElfW(Nhdr)) <= size;) {
        ElfW(Nhdr) note;
        std::memcpy(&note, notes + at, sizeof(note));
        const size_t name = at + sizeof(note);
        const size_t description = name + (note.n_namesz + 3u) / 4 * 4;
        if (description + note.n_descsz > size) break;
        if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && std::memcmp(notes + name, "GNU", 4) == 0)
            return to_hex(reinterpret_cast<const unsigned char*>(notes + description), note.n_descsz);
        at = description + (note.n_descsz + 3u) / 4 * 4;
    }
    return {};
}

} // namespace

std::string own_build_id() {
    std::string found;
    // The main program comes first; any answer but 0 ends the iteration.
    ::dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* result) {
            for (int i = 0; i < info->dlpi_phnum; ++i) {
                const auto& header = info->dlpi_phdr[i];
                if (header.p_type != PT_NOTE) continue;
                const auto* notes = reinterpret_cast<const char*>(info->dlpi_addr + header.p_vaddr);
                if (std::string id = find_in(notes, header.p_memsz); !id.empty()) {
                    *static_cast<std::string*>(result) = std::move(id);
                    break;
                }
            }
            return 1;
        },
        &found);
    return found;
}

} // namespace liveupdate::handoff
