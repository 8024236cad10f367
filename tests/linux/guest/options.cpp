#include "tests/linux/guest/options.hpp"

#include <algorithm>
#include <cstdlib>

namespace linux_guest {

std::vector<std::string> split(const std::string& text, const char* separators) {
    std::vector<std::string> words;
    for (std::size_t begin = text.find_first_not_of(separators); begin != std::string::npos;) {
        const std::size_t end = std::min(text.find_first_of(separators, begin), text.size());
        words.push_back(text.substr(begin, end - begin));
        begin = text.find_first_not_of(separators, end);
    }
    return words;
}

Options::Options(const std::string& command_line) {
    for (const std::string& word : split(command_line, " \n")) {
        const auto equals = word.find('=');
        if (word.starts_with("lu.") && equals != std::string::npos)
            words_[word.substr(3, equals - 3)] = word.substr(equals + 1);
    }
}

std::string Options::word(const std::string& name, const std::string& otherwise) const {
    const auto found = words_.find(name);
    return found == words_.end() ? otherwise : found->second;
}

std::uint64_t Options::number(const std::string& name, std::uint64_t otherwise) const {
    const auto found = words_.find(name);
    return found == words_.end() ? otherwise : std::strtoull(found->second.c_str(), nullptr, 0);
}

std::vector<std::string> Options::list(const std::string& name) const {
    return split(word(name), ",");
}

} // namespace linux_guest
