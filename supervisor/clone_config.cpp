#include "supervisor/clone_config.hpp"

#include <filesystem>
#include <sstream>

#include "supervisor/config_reader.hpp"

namespace liveupdate::supervisor {
namespace {

namespace fs = std::filesystem;

void make_absolute(toml::table& table, std::string_view key, const fs::path& folder) {
    auto* const value = table.get_as<std::string>(key);
    if (value == nullptr || value->get().empty() || value->get().starts_with('/')) return;
    value->get() = (folder / value->get()).lexically_normal().string();
}

void make_absolute(toml::table& root, std::string_view section, std::initializer_list<std::string_view> keys,
    const fs::path& folder) {
    auto* const table = root.get_as<toml::table>(section);
    if (table == nullptr) return;
    for (const std::string_view key : keys)
        make_absolute(*table, key, folder);
}

template <typename Change>
void each(toml::table& root, std::string_view section, Change change) {
    auto* const tables = root.get_as<toml::array>(section);
    if (tables == nullptr) return;
    for (size_t i = 0; i < tables->size(); ++i)
        if (auto* const table = tables->get_as<toml::table>(i)) change(*table, i);
}

void name_console(toml::table& root, const std::string& name) {
    auto* const console = root.get_as<toml::table>("console");
    auto* const path = console == nullptr ? nullptr : console->get_as<std::string>("path");
    if (path == nullptr) return;
    const fs::path former(path->get());
    path->get() = (former.parent_path() / (name + former.extension().string())).string();
}

} // namespace

Result<std::string> clone_config(std::string_view text, const std::string& vm_file, const CloneFacts& facts) {
    auto parsed = toml::parse(text, vm_file);
    if (!parsed)
        return Error(
            ErrorCode::kInvalid, "the VM file in template " + facts.template_name +
                                     " cannot be read: " + std::string(parsed.error().description()));
    toml::table& root = parsed.table();
    const fs::path folder = fs::path(vm_file).parent_path();
    make_absolute(root, "vmm", {"binary"}, folder);
    make_absolute(root, "machine", {"kernel", "initrd", "firmware"}, folder);
    make_absolute(root, "console", {"path"}, folder);
    each(root, "memory", [&](toml::table& memory, size_t) { make_absolute(memory, "directory", folder); });
    each(root, "disk", [&](toml::table& disk, size_t i) {
        make_absolute(disk, "path", folder);
        if (i < facts.disks.size() && !facts.disks[i].empty()) disk.insert_or_assign("path", facts.disks[i]);
    });
    size_t card = 0; // of those on a tap
    each(root, "net", [&](toml::table& net, size_t) {
        net.erase("mac");
        const auto* const type = net.get_as<std::string>("type");
        if (type != nullptr && type->get() == "user") return;
        if (card < facts.taps.size()) net.insert_or_assign("tap", facts.taps[card]);
        ++card;
    });
    name_console(root, facts.name);
    std::ostringstream out;
    out << kCloneMark << " from template " << facts.template_name << ".\n" << root << '\n';
    return out.str();
}

} // namespace liveupdate::supervisor
