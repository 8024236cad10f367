#pragma once
/// The command line: words `name=value` between blanks. Unknown words are ignored, because
/// machines add their own (QEMU's microvm does); of a repeated name the last one counts.
#include <cstdint>

namespace tests::guests {

/// Copies the loader's command line; once, on vCPU 0, before the other functions.
void keep_command_line(const char* text);

/// Number after `name=`: decimal, or hexadecimal after 0x. `fallback` where the name is missing
/// or no number follows.
std::uint64_t option_number(const char* name, std::uint64_t fallback);

/// Whether `name=word` was given.
bool option_is(const char* name, const char* word);

} // namespace tests::guests
