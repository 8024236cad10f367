// What every emulated device is to the machine: a name, and state that is declared exactly once.
//
// The machine's registry asks `state()` when it is built. A device with a StateSchema is saved and loaded
// under its section; one that is Stateless says why in words, and its save and load are never called. There
// is no default in between: a device that forgets to choose does not compile.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

#include "handoff/base/result.hpp"

namespace liveupdate::vmm {

// The device writes `version` and loads any of [oldest_loadable, version]. `section` and `instance`, which
// counts devices of one kind, are together unique in a machine and, once shipped, never change.
struct StateSchema {
    std::string section;
    uint32_t version;
    uint32_t oldest_loadable;
    uint32_t instance = 0;
};

// `reason` completes the sentence "nothing of this device crosses an update, because ...".
struct Stateless {
    std::string reason;
};

using StateDeclaration = std::variant<StateSchema, Stateless>;

class Device {
public:
    Device() = default;
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;
    virtual ~Device() = default;

    // Unique in a machine, for people: "serial0".
    virtual std::string_view name() const = 0;

    virtual StateDeclaration state() const = 0;

    // The serialised protobuf message of the device's state, in the schema's `version`. Any thread; while
    // vCPUs run the result is consistent in itself (good for a rehearsal) but at once out of date.
    virtual Result<std::string> save() const = 0;

    // Replaces the whole state by `bytes`, which a peer wrote as `version` and which are not trusted: a
    // version outside the schema, unknown or missing fields and values out of range are refused with a
    // sentence. On an error the device is as it was. Only while no vCPU runs; interrupt lines are driven to
    // the loaded level, so the interrupt controller is loaded first.
    virtual Result<void> load(std::string_view bytes, uint32_t version) = 0;
};

// The base of devices without state. They only say why; they cannot be saved by mistake.
class StatelessDevice : public Device {
public:
    virtual std::string_view why_stateless() const = 0;

    StateDeclaration state() const final { return Stateless{std::string(why_stateless())}; }
    Result<std::string> save() const final { return misuse("saved"); }
    Result<void> load(std::string_view, uint32_t) final { return misuse("loaded"); }

private:
    Error misuse(std::string_view what) const {
        return {ErrorCode::kInternal, std::string(name()) + " has no state to be " + std::string(what) +
                                          ": " + std::string(why_stateless())};
    }
};

} // namespace liveupdate::vmm
