// The templates of this host: saved guests that others are cloned from. Each is a folder that is made whole
// under another name and then renamed, and is never written to again:
//
//     STATE/.templates/NAME/guest.save       the guest (docs/save-format.md)
//                           ram0             of a guest of QEMU: its RAM (ram_image.hpp)
//                           disk0 …          the disks that it writes to
//                           template.json    {"vm": its name, "vm_file": the path of its VM file}
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "handoff/save/reader.hpp"
#include "supervisor/paths.hpp"

namespace liveupdate::supervisor {

// A template that is being made; nobody else makes one of that name meanwhile.
struct NewTemplate {
    std::string directory; // absolute, empty at first
    UniqueFd lock;
};

struct Template {
    std::string name;
    std::string directory; // absolute
    std::string vm_file;   // of the VM that it was made of, when it was made: absolute
    std::unique_ptr<handoff::save::Reader> save;
};

class TemplateStore {
public:
    explicit TemplateStore(const Paths& paths) : root_(paths.templates()) {}

    // In place of what a crash has left. kRefused when there is one of that name, or when what a crash has
    // left is a whole guest; kBusy when somebody is making one.
    Result<NewTemplate> begin(const std::string& name) const;
    // What begin() gave becomes the template. kRefused when somebody else was first.
    Result<void> publish(const std::string& name, const std::string& vm, const std::string& vm_file) const;
    void give_up(const std::string& name) const;

    // Names, sorted. None when nothing has been made here.
    Result<std::vector<std::string>> names() const;
    // Opens it and checks all but its RAM. kNotFound: there is none; kRefused: it is damaged, or of a version
    // that this build does not read.
    Result<Template> open(const std::string& name) const;
    // Clones that run go on: they have it open.
    Result<void> remove(const std::string& name) const;

private:
    std::string path(const std::string& name) const { return root_ + "/" + name; }
    std::string new_path(const std::string& name) const { return root_ + "/." + name + ".new"; }

    std::string root_;
};

} // namespace liveupdate::supervisor
