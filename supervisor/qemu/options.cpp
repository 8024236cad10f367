#include "supervisor/qemu/options.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <nlohmann/json.hpp>

namespace liveupdate::supervisor::qemu {
namespace {

using std::string_view;

// Options that have no value; all others have one.
constexpr std::array<string_view, 31> kBare = {"-S", "-daemonize", "-nodefaults", "-no-user-config",
    "-no-reboot", "-no-shutdown", "-nographic", "-snapshot", "-enable-kvm", "-no-hpet", "-no-acpi",
    "-no-fd-bootchk", "-usb", "-s", "-full-screen", "-curses", "-no-quit", "-portrait", "-only-migratable",
    "-win2k-hack", "-singlestep", "-mem-prealloc", "-preconfig", "-enable-sync-profile", "-xen-attach",
    "-xen-domid-restrict", "-async-teardown", "-semihosting", "-old-param", "-enable-fips", "-rtc-td-hack"};
constexpr std::array<string_view, 3> kListening = {"-gdb", "-s", "-spice"};

// "server=on", "server" and JSON's "server":true in one.
std::string without_quotes(std::string value) {
    std::erase_if(value, [](char c) { return c == '"' || c == ' ' || c == '{' || c == '}'; });
    std::replace(value.begin(), value.end(), ':', '=');
    return "," + value + ",";
}

void flatten(const nlohmann::json& value, const std::string& key, std::vector<Part>& parts) {
    const std::string prefix = key.empty() ? "" : key + ".";
    if (value.is_structured())
        for (const auto& [name, each] : value.items())
            flatten(each, prefix + name, parts);
    else if (value.is_boolean())
        parts.push_back({key, value.get<bool>() ? "on" : "off"});
    else
        parts.push_back({key, value.is_string() ? value.get<std::string>() : value.dump()});
}

bool joins_group(const std::vector<Part>& parts) {
    return std::any_of(parts.begin(), parts.end(), [](const Part& part) {
        return part.key == "mcast" || (part.key == "remote.host" && is_multicast(part.value));
    });
}

// Of character devices and networks alike: "server"; of networks: where packets are taken from.
bool listens(const std::vector<Part>& parts) {
    return std::any_of(parts.begin(), parts.end(), [](const Part& part) {
        const bool serves =
            part.key == "server" ? is_on(part.value) : part.key.empty() && part.value == "server";
        return serves || part.key == "listen" || part.key == "localaddr" || part.key == "local.type";
    });
}

} // namespace

std::vector<Option> options_of(const std::vector<std::string>& arguments) {
    std::vector<Option> all;
    for (size_t i = 0; i < arguments.size(); ++i) {
        Option option;
        option.name = arguments[i].starts_with("--") ? arguments[i].substr(1) : arguments[i];
        if (option.name.starts_with("-") && !is_one_of(kBare, option.name) && i + 1 < arguments.size()) {
            option.value = arguments[++i];
            option.has_value = true;
        }
        all.push_back(std::move(option));
    }
    return all;
}

std::string words_of(const Option& option) {
    return "'" + option.name + (option.has_value ? " " + option.value : "") + "'";
}

std::string value_of(const std::string& value, string_view key) {
    const std::string text = without_quotes(value);
    const size_t at = text.find("," + std::string(key) + "=");
    if (at == std::string::npos) return {};
    const size_t begin = at + key.size() + 2;
    return text.substr(begin, text.find(',', begin) - begin);
}

bool is_understood(const Option& option) {
    return option.name.starts_with("-") && !option.value.starts_with("-");
}

std::string why_it_listens(const Option& option) {
    if (is_one_of(kListening, option.name) || (option.name == "-vnc" && option.value != "none"))
        return "listens, and a second QEMU cannot listen at the same place";
    const std::vector<Part> parts = parts_of(option.value);
    if (listens(parts) && !joins_group(parts))
        return "listens at a socket, which the next QEMU would take away from this one";
    const auto forwards = [](const Part& part) { return part.key.starts_with("hostfwd"); };
    if (std::any_of(parts.begin(), parts.end(), forwards))
        return "listens at a port of this host, which the next QEMU could not";
    return {};
}

bool is_on(const std::string& value) {
    constexpr std::array<string_view, 4> kOn = {"on", "yes", "true", "y"};
    return is_one_of(kOn, value);
}

std::vector<Part> parts_of(std::string_view text) {
    if (text.starts_with("{")) {
        std::vector<Part> parts;
        const auto json = nlohmann::json::parse(text, nullptr, false);
        if (json.is_object()) flatten(json, "", parts);
        if (!parts.empty()) return parts;
    }
    std::vector<Part> parts(1);
    bool in_value = false;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] == ',' && i + 1 < text.size() && text[i + 1] == ',') {
            parts.back().value += ',';
            ++i;
        } else if (text[i] == ',') {
            parts.emplace_back();
            in_value = false;
        } else if (text[i] == '=' && !in_value) {
            parts.back().key = std::move(parts.back().value);
            parts.back().value.clear();
            in_value = true;
        } else {
            parts.back().value += text[i];
        }
    }
    return parts;
}

std::string with_commas_doubled(const std::string& value) {
    std::string text;
    for (const char c : value)
        text.append(c == ',' ? 2 : 1, c);
    return text;
}

bool is_multicast(const std::string& host) {
    in_addr address{};
    return ::inet_pton(AF_INET, host.c_str(), &address) == 1 && IN_MULTICAST(ntohl(address.s_addr));
}

} // namespace liveupdate::supervisor::qemu
