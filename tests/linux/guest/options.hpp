// What the guest is to do: words lu.NAME=VALUE on the kernel's command line.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace linux_guest {

// The words between characters of `separators`.
std::vector<std::string> split(const std::string& text, const char* separators);

class Options {
public:
    explicit Options(const std::string& command_line);

    std::string word(const std::string& name, const std::string& otherwise = "") const;
    std::uint64_t number(const std::string& name, std::uint64_t otherwise) const;
    std::vector<std::string> list(const std::string& name) const; // separated by commas

private:
    std::map<std::string, std::string> words_;
};

} // namespace linux_guest
