// QEMU's command line as options and their values, and the values as their parts. Pure.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace liveupdate::supervisor::qemu {

template <size_t N>
bool is_one_of(const std::array<std::string_view, N>& all, std::string_view word) {
    return std::find(all.begin(), all.end(), word) != all.end();
}
inline bool contains(std::string_view text, std::string_view word) {
    return text.find(word) != std::string_view::npos;
}

struct Option {
    std::string name; // with one dash
    std::string value;
    bool has_value = false;
};

// `arguments` without the program's name.
std::vector<Option> options_of(const std::vector<std::string>& arguments);
// "'-gdb tcp::1234'"
std::string words_of(const Option& option);

// The value of `key` in "a,key=value,b" or in JSON; empty when there is none.
std::string value_of(const std::string& value, std::string_view key);

// False: it is no option, or its value is one, because the word before it has no value that we know of.
bool is_understood(const Option& option);

// Why a second QEMU with this option could not be started beside the first, since both would listen at one
// place; empty when they would not.
std::string why_it_listens(const Option& option);

// Of "socket,id=a,server": {"", "socket"}, {"id", "a"}, {"", "server"}. A comma of a value is doubled in the
// text, and single here. Of JSON, {"type":"stream","addr":{"port":"1"}}: {"type", "stream"},
// {"addr.port", "1"}, by which names QEMU knows them in the other form; true and false are "on" and "off".
struct Part {
    std::string key;
    std::string value;
};
std::vector<Part> parts_of(std::string_view text);
std::string with_commas_doubled(const std::string& value);
// Of a part that switches something.
bool is_on(const std::string& value);

// Whether an address is that of a group, which any number of processes listen at.
bool is_multicast(const std::string& host);

} // namespace liveupdate::supervisor::qemu
