#include "supervisor/template_store.hpp"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor {
namespace {

namespace fs = std::filesystem;

constexpr const char* kAbout = "template.json";
constexpr size_t kLongestAbout = 65536;

Error from(const std::error_code& problem, const std::string& what) {
    return {ErrorCode::kSystem, what + ": " + problem.message(), problem.value()};
}

Error there_already(const std::string& name) {
    return {ErrorCode::kRefused, "there is a template '" + name +
                                     "' already; remove it, or give the new one another name with --name"};
}

Result<void> remove_folder(const std::string& path) {
    std::error_code problem;
    fs::remove_all(path, problem);
    if (problem) return from(problem, "remove " + path);
    return {};
}

Result<void> sync_folder(const std::string& path) {
    TRY_ASSIGN(const UniqueFd folder, fd::open(path, O_RDONLY | O_DIRECTORY));
    if (::fsync(folder.get()) < 0) return Error::from_errno("sync " + path);
    return {};
}

} // namespace

Result<NewTemplate> TemplateStore::begin(const std::string& name) const {
    TRY(check_vm_name(name).context("the template"));
    if (::access(path(name).c_str(), F_OK) == 0) return there_already(name);
    NewTemplate made;
    made.directory = new_path(name);
    TRY(make_directories(made.directory));
    TRY_ASSIGN(made.lock, fd::open(made.directory, O_RDONLY | O_DIRECTORY));
    if (::flock(made.lock.get(), LOCK_EX | LOCK_NB) < 0)
        return Error(ErrorCode::kBusy, "somebody else is making a template '" + name + "'; wait");
    // The guest may have been stopped for it, and be nowhere else.
    if (::access((made.directory + "/" + std::string(handoff::save::kFileName)).c_str(), F_OK) == 0)
        return Error(ErrorCode::kRefused,
            made.directory +
                " holds a guest that was saved for a template which was not finished; start it with "
                "`liveupdate restore " +
                made.directory + " NAME`, or remove that folder");
    std::error_code problem;
    for (const auto& left : fs::directory_iterator(made.directory, problem))
        fs::remove_all(left.path(), problem);
    if (problem) return from(problem, "empty " + made.directory);
    return made;
}

Result<void> TemplateStore::publish(
    const std::string& name, const std::string& vm, const std::string& vm_file) const {
    const nlohmann::json about = {{"vm", vm}, {"vm_file", vm_file}};
    TRY(fd::write_file_atomically(new_path(name) + "/" + kAbout, about.dump() + "\n"));
    // Read-only also for root, as far as an accident goes.
    std::error_code problem;
    for (const auto& entry : fs::directory_iterator(new_path(name), problem)) {
        // QEMU opens what it maps privately for writing, too.
        const bool is_image = entry.path().filename().string().starts_with("ram");
        fs::permissions(entry.path(),
            is_image ? fs::perms::owner_read | fs::perms::owner_write : fs::perms::owner_read, problem);
    }
    if (problem) return from(problem, "make " + new_path(name) + " read-only");
    TRY(sync_folder(new_path(name)));
    if (::renameat2(AT_FDCWD, new_path(name).c_str(), AT_FDCWD, path(name).c_str(), RENAME_NOREPLACE) < 0) {
        if (errno == EEXIST) return there_already(name);
        return Error::from_errno("rename " + new_path(name) + " to " + path(name));
    }
    return sync_folder(root_);
}

void TemplateStore::give_up(const std::string& name) const {
    static_cast<void>(remove_folder(new_path(name)));
}

Result<std::vector<std::string>> TemplateStore::names() const {
    std::vector<std::string> names;
    std::error_code problem;
    if (!fs::exists(root_, problem)) return names;
    for (const auto& entry : fs::directory_iterator(root_, problem)) {
        std::string name = entry.path().filename();
        if (!name.starts_with('.')) names.push_back(std::move(name));
    }
    if (problem) return from(problem, "list " + root_);
    std::sort(names.begin(), names.end());
    return names;
}

Result<Template> TemplateStore::open(const std::string& name) const {
    TRY(check_vm_name(name).context("the template"));
    Template found;
    found.name = name;
    found.directory = path(name);
    if (::access(found.directory.c_str(), F_OK) < 0 && errno == ENOENT)
        return Error(
            ErrorCode::kNotFound, "there is no template '" + name + "'; see `liveupdate template list`");
    const auto text = fd::read_file(found.directory + "/" + kAbout, kLongestAbout);
    if (!text) return Error(text.error()).context("template " + name);
    const auto about = nlohmann::json::parse(*text, nullptr, false);
    if (!about.is_object() || !about.contains("vm_file") || !about["vm_file"].is_string())
        return Error(ErrorCode::kRefused, "template " + name + ": " + kAbout + " in " + found.directory +
                                              " is damaged; make the template anew");
    found.vm_file = about["vm_file"];
    auto save = handoff::save::Reader::open(found.directory + "/" + std::string(handoff::save::kFileName));
    if (!save) return std::move(save).error().context("template " + name);
    found.save = std::move(*save);
    return found;
}

Result<void> TemplateStore::remove(const std::string& name) const {
    TRY(check_vm_name(name).context("the template"));
    // Half removed it must not be found.
    const std::string aside = root_ + "/." + name + ".removed";
    TRY(remove_folder(aside));
    if (::rename(path(name).c_str(), aside.c_str()) < 0) {
        if (errno == ENOENT)
            return Error(
                ErrorCode::kNotFound, "there is no template '" + name + "'; see `liveupdate template list`");
        return Error::from_errno("rename " + path(name));
    }
    return remove_folder(aside);
}

} // namespace liveupdate::supervisor
