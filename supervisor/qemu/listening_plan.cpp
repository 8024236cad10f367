#include "supervisor/qemu/listening_plan.hpp"

#include <sys/socket.h>

#include <optional>

#include "supervisor/qemu/descriptors.hpp"
#include "supervisor/qemu/options.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

using std::string_view;

// How the number of a socket is written, behind everything else.
struct Form {
    string_view kind;
    string_view before;
    string_view after;
};
constexpr Form kCharacterDevice = {"socket", ",fd=", ",server=on,wait=off"};
constexpr Form kStream = {"stream", ",server=on,addr.type=fd,addr.str=", ""};
constexpr Form kDatagram = {"dgram", ",local.type=fd,local.str=", ""};
constexpr std::array<Form, 3> kForms = {kCharacterDevice, kStream, kDatagram};

std::string number_of(const Form& form, int index) {
    return std::string(form.before) + std::to_string(kFirstListeningFd + index) + std::string(form.after);
}

struct Device {
    Form form;
    ListeningSocket at;
    std::string rest; // the parts that are not of the address
};
// None: the option is of something else, or has no socket at a place of its own.
using Found = Result<std::optional<Device>>;
Found none() {
    return std::optional<Device>();
}

Error refusal(const Option& option, const std::string& why) {
    return {ErrorCode::kInvalid, "extra_args: " + words_of(option) + " " + why};
}

// A part without "=" switches what it names on, with "no" before it off.
Part with_key(Part part) {
    if (!part.key.empty()) return part;
    if (part.value.starts_with("no") && part.value != "nodelay") return {part.value.substr(2), "off"};
    return {part.value, "on"};
}

void keep(const Part& part, Device& device) {
    device.rest += "," + part.key + "=" + with_commas_doubled(part.value);
}

// The address of what takes clients.
class Address {
public:
    // False: `key` is none of an address.
    bool take(const std::string& key, const std::string& value) {
        if (key == "path")
            at_.path = value;
        else if (key == "host")
            at_.host = value;
        else if (key == "port")
            at_.port = value;
        else if (key == "ipv4" || key == "ipv6")
            at_.family = !is_on(value) ? at_.family : key == "ipv4" ? AF_INET : AF_INET6;
        else if (key == "abstract" || key == "to" || key == "fd")
            refuse(key);
        else
            return key == "tight";
        return true;
    }
    void refuse(const std::string& key) { refused_ = key; }

    Result<ListeningSocket> result(const Option& option) const {
        if (!refused_.empty())
            return refusal(option, "names its address by '" + refused_ +
                                       "', which is not taken here; write a path, or host and port");
        if (at_.path.empty() == at_.port.empty())
            return refusal(option, "has no address; write a path, or host and port");
        if (!at_.path.empty() && at_.path.front() != '/')
            return refusal(option, "has a path that is not absolute; write it from '/' on");
        return at_;
    }

private:
    ListeningSocket at_;
    std::string refused_;
};

Found character_device(const Option& option, const std::vector<Part>& parts) {
    Device device{kCharacterDevice, {}, {}};
    Address address;
    bool listens = false, waits = false;
    for (size_t i = 1; i < parts.size(); ++i) {
        const Part part = with_key(parts[i]);
        if (part.key == "server")
            listens = is_on(part.value);
        else if (part.key == "wait")
            waits = is_on(part.value);
        else if (!address.take(part.key, part.value))
            keep(part, device);
    }
    if (!listens) return none();
    if (waits) return refusal(option, "waits for a client, and the guest with it; write wait=off");
    TRY_ASSIGN(device.at, address.result(option));
    return std::optional(std::move(device));
}

Found stream_network(const Option& option, const std::vector<Part>& parts) {
    constexpr string_view kAddress = "addr.";
    Device device{kStream, {}, {}};
    Address address;
    bool listens = false;
    for (const Part& part : parts) {
        const bool of_address = part.key.starts_with(kAddress);
        const std::string key = of_address ? part.key.substr(kAddress.size()) : part.key;
        if (key == "server")
            listens = is_on(part.value);
        else if (!of_address)
            keep(part, device);
        else if (key == "type" && (part.value == "inet" || part.value == "unix"))
            continue;
        else if (!address.take(key, part.value))
            address.refuse(key == "type" ? part.key + "=" + part.value : part.key);
    }
    if (!listens) return none();
    TRY_ASSIGN(device.at, address.result(option));
    return std::optional(std::move(device));
}

Found datagram_network(const Option& option, const std::vector<Part>& parts) {
    Device device{kDatagram, {}, {}};
    bool has_place = false;
    std::string refused;
    for (const Part& part : parts) {
        const bool local = part.key.starts_with("local."), remote = part.key.starts_with("remote.");
        has_place = has_place || local;
        if (!local && !remote)
            keep(part, device);
        else if (part.key == "local.host")
            device.at.host = part.value;
        else if (part.key == "local.port")
            device.at.port = part.value;
        else if (part.key == "remote.host")
            device.at.peer_host = part.value;
        else if (part.key == "remote.port")
            device.at.peer_port = part.value;
        else if ((part.key != "local.type" && part.key != "remote.type") || part.value != "inet")
            refused = part.key + "=" + part.value;
    }
    if (!has_place || is_multicast(device.at.peer_host)) return none();
    const std::string form = "; write local.type=inet and remote.type=inet, each with host and port";
    if (!refused.empty()) return refusal(option, "has '" + refused + "', which is not taken here" + form);
    if (device.at.port.empty() || device.at.peer_port.empty())
        return refusal(option, "lacks one of its two addresses" + form);
    return std::optional(std::move(device));
}

// "HOST:PORT" of the form that is older than stream and dgram; IPv4, where an empty host is every address.
void split(const std::string& address, std::string& host, std::string& port) {
    const size_t colon = std::min(address.rfind(':'), address.size());
    host = address.substr(0, colon);
    port = colon < address.size() ? address.substr(colon + 1) : "";
}

Found older_network(const Option& option, const std::vector<Part>& parts) {
    Device device{kStream, {}, {}};
    device.at.family = AF_INET;
    std::string listen, peer, local;
    for (const Part& part : parts) {
        if (part.key == "listen")
            listen = part.value;
        else if (part.key == "udp")
            peer = part.value;
        else if (part.key == "localaddr")
            local = part.value;
        else
            keep(part, device);
    }
    if (listen.empty() && peer.empty()) return none();
    split(listen.empty() ? local : listen, device.at.host, device.at.port);
    if (device.at.port.empty())
        return refusal(option, listen.empty() ? "has no address of its own; write localaddr=HOST:PORT"
                                              : "has no port; write listen=HOST:PORT");
    if (!listen.empty()) return std::optional(std::move(device));
    device.form = kDatagram;
    split(peer, device.at.peer_host, device.at.peer_port);
    if (device.at.peer_port.empty()) return refusal(option, "has no peer; write udp=HOST:PORT");
    return std::optional(std::move(device));
}

Found device_of(const Option& option) {
    std::vector<Part> parts = parts_of(option.value);
    const auto type = std::find_if(
        parts.begin(), parts.end(), [](const Part& part) { return part.key.empty() || part.key == "type"; });
    if (type == parts.end()) return none();
    const std::string kind = type->value;
    if (option.name == "-chardev" && kind == "socket" && type == parts.begin())
        return character_device(option, parts);
    if (option.name != "-netdev") return none();
    parts.erase(type);
    if (kind == "stream") return stream_network(option, parts);
    if (kind == "dgram") return datagram_network(option, parts);
    if (kind == "socket") return older_network(option, parts);
    return none();
}

// Of an option that cannot be had.
std::string in_its_place(const Option& option) {
    // Whoever came to the debugger of a QEMU that has not loaded the guest could let that one run it.
    if (option.name == "-gdb" || option.name == "-s")
        return "; write a -chardev socket,…,server=on, and say 'gdbserver chardev:ID' at a monitor of the "
               "running QEMU when a debugger is to come";
    if (option.name == "-spice") return "; write vnc = \"127.0.0.1:1\" in [qemu]";
    if (contains(option.value, "hostfwd"))
        return "; write hostfwd = [\"tcp:127.0.0.1:2222-:22\"] in a [[net]] of type \"user\"";
    return "; only -chardev socket,…,server=on (and a -mon or -serial with it), -netdev stream,…,server=on "
           "and -netdev dgram may listen";
}

} // namespace

Result<ListeningPlan> plan_listening(const std::vector<std::string>& extra_args) {
    ListeningPlan plan;
    for (const Option& option : options_of(extra_args)) {
        if (!is_understood(option))
            return refusal(option, "is not understood: what stands before it may be an option without a "
                                   "value; write one option of QEMU after another");
        Option own = option;
        TRY_ASSIGN(const auto device, device_of(option));
        if (device) {
            own.value = std::string(device->form.kind) + device->rest +
                        number_of(device->form, static_cast<int>(plan.sockets.size()));
            plan.sockets.push_back(device->at);
        } else if (const std::string why = why_it_listens(option); !why.empty()) {
            return refusal(option, why + in_its_place(option));
        }
        plan.arguments.push_back(own.name);
        if (own.has_value) plan.arguments.push_back(own.value);
    }
    if (plan.sockets.size() > size_t{kMostListening})
        return Error(ErrorCode::kInvalid,
            "extra_args: more than " + std::to_string(kMostListening) + " devices listen");
    return plan;
}

std::vector<int> listening_numbers(const std::vector<std::string>& arguments) {
    std::vector<int> numbers;
    for (const std::string& argument : arguments)
        for (const Form& form : kForms)
            for (int index = 0; index < kMostListening; ++index)
                if (argument.starts_with(std::string(form.kind) + ",") &&
                    argument.ends_with(number_of(form, index)))
                    numbers.push_back(kFirstListeningFd + index);
    return numbers;
}

} // namespace liveupdate::supervisor::qemu
