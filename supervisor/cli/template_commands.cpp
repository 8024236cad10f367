// `liveupdate template`: guests to be cloned from.
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "supervisor/cli/commands.hpp"
#include "supervisor/cli/control_client.hpp"
#include "supervisor/cli/json_view.hpp"
#include "supervisor/cli/record_view.hpp"
#include "supervisor/cli/save_call.hpp"
#include "supervisor/cli/vms.hpp"
#include "supervisor/ram_image.hpp"
#include "supervisor/saved_disks.hpp"
#include "supervisor/template_store.hpp"
#include "supervisor/units.hpp"

namespace liveupdate::supervisor::cli {
namespace {

constexpr auto kStatusTime = std::chrono::seconds(10);

struct CreateArguments {
    std::string vm, name, timeout;
    bool live = false, stop = false, json = false;
};

struct ShowArguments {
    std::string name;
    bool verify = false, json = false;
};

// Where the VM file lies that its supervisor was started with.
Result<std::string> vm_file_of(const Paths& paths, const std::string& vm) {
    TRY_ASSIGN(auto client, ControlClient::connect(paths, vm));
    TRY_ASSIGN(const auto status, client.call({{"command", "status"}}, Deadline::after(kStatusTime)));
    const std::string path = text_at(status, "/config");
    if (path.empty())
        return Error(ErrorCode::kProtocol, "the supervisor of '" + vm + "' does not tell its VM file");
    return path;
}

Result<nlohmann::json> create_request(const CreateArguments& arguments, const std::string& directory) {
    nlohmann::json request = {{"command", "save"}, {"directory", directory}, {"kind", "file"},
        {"disks", "copy"}, {"ram", "image"}, {"live", arguments.live}, {"stop", arguments.stop}};
    if (!arguments.timeout.empty()) {
        TRY_ASSIGN(const auto timeout, parse_duration(arguments.timeout).context("--timeout"));
        request["timeout_ms"] =
            static_cast<uint64_t>(std::chrono::ceil<std::chrono::milliseconds>(timeout).count());
    }
    return request;
}

ExitCode run_create(CliIo& io, const CreateArguments& arguments) {
    if (const auto good = check_vm_name(arguments.vm); !good) return complain(io, good.error());
    const std::string name = arguments.name.empty() ? arguments.vm : arguments.name;
    const auto vm_file = vm_file_of(io.paths, arguments.vm);
    if (!vm_file) return complain(io, vm_file.error());
    const TemplateStore store(io.paths);
    const auto made = store.begin(name);
    if (!made) return complain(io, made.error());
    const auto request = create_request(arguments, made->directory);
    if (!request) return complain(io, request.error());
    ExitCode code = ExitCode::kDone;
    auto report = call_save(io, arguments.vm, *request, code);
    if (!report) {
        // What it holds may be all that is left of a guest that was to stop.
        if (!arguments.stop) store.give_up(name);
        return code;
    }
    if (const auto published = store.publish(name, arguments.vm, *vm_file); !published)
        return complain(io, published.error());
    (*report)["template"] = name;
    (*report)["path"] = io.paths.templates() + "/" + name;
    if (arguments.json) {
        print_json(io, *report);
        return ExitCode::kDone;
    }
    io.out << save_summary(*report, arguments.vm) << "\ntemplate " << name << ": made; run `liveupdate clone "
           << name << " NAME`\n";
    print_notes(io, *report);
    return ExitCode::kDone;
}

uint64_t ram_of(const Template& found) {
    uint64_t bytes = 0;
    for (const auto& block : found.save->guest().manifest().blocks())
        if (block.name().starts_with("ram")) bytes += block.size();
    return bytes;
}

uint64_t pages_of(const Template& found) {
    uint64_t pages = 0;
    for (const auto& block : found.save->header().blocks) {
        pages += block.written;
        struct stat image {};
        if (block.spec.place == handoff::save::Place::kBeside &&
            ::stat((found.directory + "/" + block.spec.name).c_str(), &image) == 0)
            pages += static_cast<uint64_t>(image.st_blocks) * 512 / handoff::save::kPage;
    }
    return pages;
}

bool has_generation_id(const handoff::proto::SavedGuest& guest) {
    const auto& devices = guest.qemu().devices();
    return guest.manifest().machine().generation_id_gpa() != 0 ||
           std::any_of(
               devices.begin(), devices.end(), [](const auto& each) { return each.type() == "vmgenid"; });
}

nlohmann::json describe(const Template& found) {
    const auto& guest = found.save->guest();
    const auto& machine = guest.manifest().machine();
    nlohmann::json disks = nlohmann::json::array();
    for (int i = 0; i < machine.disks_size(); ++i)
        disks.push_back({{"name", machine.disks(i).name()}, {"read_only", machine.disks(i).read_only()},
            {"bytes", machine.disks(i).sectors() * 512}});
    return {{"name", found.name}, {"vm", guest.vm()}, {"made_unix", guest.saved_unix_ms() / 1000},
        {"directory", found.directory}, {"vm_file", found.vm_file}, {"vcpus", machine.vcpus()},
        {"memory_bytes", ram_of(found)}, {"saved_bytes", pages_of(found) * handoff::save::kPage},
        {"saved_by", guest.source().implementation() + " " + guest.source().version()},
        {"generation_id", has_generation_id(guest)}, {"nets", machine.nets_size()},
        {"disks", std::move(disks)}};
}

ExitCode run_list(CliIo& io, Format format) {
    const TemplateStore store(io.paths);
    const auto names = store.names();
    if (!names) return complain(io, names.error());
    nlohmann::json all = nlohmann::json::array();
    std::vector<std::vector<std::string>> rows = {{"NAME", "VM", "MADE", "RAM", "SAVED"}};
    for (const std::string& name : *names) {
        const auto found = store.open(name);
        if (!found) {
            all.push_back({{"name", name}, {"error", found.error().message}});
            rows.push_back({name, "-", "damaged: " + printable(found.error().message), "", ""});
            continue;
        }
        all.push_back(describe(*found));
        rows.push_back({name, printable(found->save->guest().vm()),
            local_time(static_cast<int64_t>(found->save->guest().saved_unix_ms() / 1000)),
            human_size(ram_of(*found)), human_size(pages_of(*found) * handoff::save::kPage)});
    }
    if (format == Format::kJson)
        print_json(io, all);
    else if (names->empty())
        io.out << "there are no templates; make one with `liveupdate template create VM`\n";
    else
        print_table(io.out, rows);
    return ExitCode::kDone;
}

// Every chunk of RAM against its sum.
Result<void> verify(const Template& found) {
    TRY(found.save->load_tables());
    const auto& sums = found.save->guest().qemu().image_sums();
    for (size_t i = 0; i < found.save->header().blocks.size(); ++i) {
        const handoff::save::BlockSpec block = found.save->header().blocks[i].spec;
        if (block.place == handoff::save::Place::kHere)
            TRY(found.save->check_block(i));
        else
            TRY(read_ram_image(
                found.directory + "/" + block.name, block.size, {sums.begin(), sums.end()}, {}));
    }
    return {};
}

ExitCode run_show(CliIo& io, const ShowArguments& arguments) {
    const auto found = TemplateStore(io.paths).open(arguments.name);
    if (!found) return complain(io, found.error());
    if (arguments.verify)
        if (const auto whole = verify(*found); !whole) return complain(io, whole.error());
    nlohmann::json about = describe(*found);
    if (arguments.verify) about["verified"] = true;
    if (arguments.json) {
        print_json(io, about);
        return ExitCode::kDone;
    }
    const auto line = [&](const char* title, const std::string& text) {
        io.out << io.paint(Colour::kDim, std::string(title) + ":") << ' ' << printable(text) << '\n';
    };
    line("      Name", found->name);
    line("     Of VM", text_at(about, "/vm") + ", " + found->vm_file);
    line("      Made", local_time(static_cast<int64_t>(number_at(about, "/made_unix"))) + " by " +
                           text_at(about, "/saved_by"));
    line("   Machine", std::to_string(number_at(about, "/vcpus")) + " vCPUs, " + human_size(ram_of(*found)) +
                           ", of which " + human_size(number_at(about, "/saved_bytes")) + " are not zero");
    line("     Cards", std::to_string(number_at(about, "/nets")) + "; each clone needs as many tap devices");
    for (const auto& disk : about["disks"])
        line("      Disk", text_at(disk, "/name") + ", " + human_size(number_at(disk, "/bytes")) +
                               (true_at(disk, "/read_only") ? ", read by all" : ", copied for each clone"));
    line("Generation", true_at(about, "/generation_id") ? "the guest learns that it is a copy"
                                                        : "the guest does not learn it");
    line("    Folder", found->directory);
    if (arguments.verify) line("   Verified", "all of its RAM is as it was saved");
    return ExitCode::kDone;
}

ExitCode run_remove(CliIo& io, const std::string& name) {
    if (const auto removed = TemplateStore(io.paths).remove(name); !removed)
        return complain(io, removed.error());
    io.out << "template " << name << ": removed; clones that run go on\n";
    return ExitCode::kDone;
}

void add_create(CLI::App& parent, Action& chosen) {
    CLI::App& create = *parent.add_subcommand("create", "Make a template of a guest that runs");
    const auto arguments = std::make_shared<CreateArguments>();
    create.add_option("VM", arguments->vm, "the VM")->required();
    create.add_option("--name", arguments->name, "the template's name, in place of the VM's");
    create.add_flag(
        "--live", arguments->live, "write RAM while the guest runs; it stands still for the rest");
    create.add_flag(
        "--stop", arguments->stop, "stop the guest once it is saved, instead of letting it run on");
    create.add_option("--timeout", arguments->timeout,
        "how long the guest may stand still, else it runs on and there is no template (10m)");
    create.add_flag("--json", arguments->json, "print a JSON object");
    create.callback(
        [arguments, &chosen] { chosen = [arguments](CliIo& io) { return run_create(io, *arguments); }; });
}

void add_show(CLI::App& parent, Action& chosen) {
    CLI::App& show = *parent.add_subcommand("show", "What a template holds");
    const auto arguments = std::make_shared<ShowArguments>();
    show.add_option("TEMPLATE", arguments->name, "the template")->required();
    show.add_flag("--verify", arguments->verify, "read all of its RAM and check it");
    show.add_flag("--json", arguments->json, "print a JSON object");
    show.callback(
        [arguments, &chosen] { chosen = [arguments](CliIo& io) { return run_show(io, *arguments); }; });
}

} // namespace

void add_template_commands(CLI::App& app, Action& chosen) {
    CLI::App& templates = *app.add_subcommand("template", "Guests that others are cloned from");
    templates.require_subcommand(1);
    add_create(templates, chosen);
    CLI::App& list = *templates.add_subcommand("list", "All templates");
    const auto json = std::make_shared<bool>(false);
    list.add_flag("--json", *json, "print a JSON array");
    list.callback([json, &chosen] {
        chosen = [json](CliIo& io) { return run_list(io, *json ? Format::kJson : Format::kText); };
    });
    add_show(templates, chosen);
    CLI::App& remove = *templates.add_subcommand("rm", "Remove a template; clones that run go on");
    const auto name = std::make_shared<std::string>();
    remove.add_option("TEMPLATE", *name, "the template")->required();
    remove.callback([name, &chosen] { chosen = [name](CliIo& io) { return run_remove(io, *name); }; });
}

} // namespace liveupdate::supervisor::cli
