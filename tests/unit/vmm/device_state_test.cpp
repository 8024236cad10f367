// What holds for the state of every device: nothing is forgotten, nothing bad is taken, nothing half-applied.
#include "vmm/devices/device.hpp"

#include <doctest/doctest.h>
#include <google/protobuf/message.h>

#include <functional>
#include <map>
#include <memory>
#include <random>

#include "tests/unit/vmm/fakes.hpp"
#include "tests/unit/vmm/virtio_fixture.hpp"
#include "vmm/devices/acpi_pm.hpp"
#include "vmm/devices/acpi_pm.pb.h"
#include "vmm/devices/reset.hpp"
#include "vmm/devices/reset.pb.h"
#include "vmm/devices/rtc.hpp"
#include "vmm/devices/rtc.pb.h"
#include "vmm/devices/serial.hpp"
#include "vmm/devices/serial.pb.h"
#include "vmm/devices/state_message.hpp"
#include "vmm/devices/virtio/blk.hpp"
#include "vmm/devices/virtio/console.hpp"
#include "vmm/devices/virtio/console.pb.h"
#include "vmm/devices/virtio/net.hpp"
#include "vmm/devices/virtio/net.pb.h"
#include "vmm/devices/virtio/rng.hpp"
#include "vmm/devices/virtio/rng.pb.h"

namespace liveupdate::vmm::test {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using Random = std::mt19937;

struct Surroundings {
    GuestRam ram;
    FakeInterrupt interrupt;
    FakeLine line;
    FakeConsole console;
    FakeMachine machine;
    FakeClock clock;
};

// A device under test. Every stateful device has its entry in subjects().
struct Subject {
    std::string name;
    std::function<std::unique_ptr<Device>(Surroundings&)> make;
    std::function<std::unique_ptr<Message>()> message;
    // Brings randomly filled fields into their ranges.
    std::function<void(Message&, Random&)> constrain;
    // Fields that a load may work out anew from the others.
    std::vector<std::string> derived;
};

void shorten(std::string& bytes, size_t most) {
    bytes.resize(std::min(bytes.size(), most));
}

void constrain_serial(Message& message, Random& random) {
    auto& serial = dynamic_cast<state::Serial&>(message);
    serial.set_divisor(serial.divisor() & 0xFFFF);
    serial.set_interrupt_enable(serial.interrupt_enable() & 0x0F);
    const bool fifos_on = random() % 2 == 0;
    serial.set_fifo_control(fifos_on ? (serial.fifo_control() & 0xC8) | 1 : 0);
    serial.set_line_control(serial.line_control() & 0xFF);
    serial.set_modem_control(serial.modem_control() & 0x1F);
    serial.set_line_errors(serial.line_errors() & 0x1E);
    serial.set_modem_deltas(serial.modem_deltas() & 0x0F);
    serial.set_scratch(serial.scratch() & 0xFF);
    shorten(*serial.mutable_receive_fifo(), fifos_on ? 16 : 1);
    shorten(*serial.mutable_transmit_fifo(), fifos_on ? 16 : 1);
    shorten(*serial.mutable_input(), 16);
}

// Rings that lie in RAM, or none that is live.
void constrain_transport(state::VirtioTransport& transport, int queues, Random& random) {
    transport.set_status(random() % 4 == 0 ? random() & 0xC3 : 0x0F | (random() & 0xC0));
    transport.set_driver_features(virtio::kRingFeatures);
    transport.set_interrupt_status(transport.interrupt_status() & 3);
    transport.clear_queues();
    for (int i = 0; i < queues; ++i) {
        state::VirtioQueue& queue = *transport.add_queues();
        queue.set_size(1u << random() % 9);
        queue.set_ready(random() % 2 == 0);
        queue.set_descriptors(random() % 64 * 0x1000);
        queue.set_available(0x40000 + random() % 64 * 0x1000);
        queue.set_used(0x80000 + random() % 64 * 0x1000);
        queue.set_next_available(random() & 0xFFFF);
        queue.set_next_used(random() & 0xFFFF);
        queue.set_signalled_used(random() & 0xFFFF);
    }
}

constexpr uint32_t kDiskQueues = 2;
constexpr uint64_t kDiskSectors = 1 << 20;

std::unique_ptr<Device> make_disk(Surroundings& s) {
    virtio::Blk::Config config;
    config.name = "disk0";
    config.queues = kDiskQueues;
    config.capacity = kDiskSectors;
    return std::make_unique<virtio::Blk>(
        virtio::VirtioDevice::Place{s.ram.memory(), s.interrupt}, config, std::nullopt);
}

void constrain_disk(Message& message, Random& random) {
    constexpr uint32_t kTypes[] = {0, 1, 4, 11, 13};
    auto& disk = dynamic_cast<state::VirtioBlk&>(message);
    constrain_transport(*disk.mutable_transport(), kDiskQueues, random);
    for (uint32_t tag = 0; auto& request : *disk.mutable_requests()) {
        request.set_tag(tag++);
        request.set_queue(request.queue() % kDiskQueues);
        request.set_head(request.head() % 256);
        request.set_type(kTypes[random() % 5]);
        request.set_sector(request.sector() % kDiskSectors);
        request.set_length(request.length() % ((kDiskSectors - request.sector()) * 512));
        request.set_done(request.done() % (request.length() + 1));
        request.set_status_gpa(request.status_gpa() % GuestRam::kSize);
    }
}

std::unique_ptr<Device> make_net(Surroundings& s) {
    const virtio::NetSpec spec{0, {0x52, 0x54, 0, 1, 2, 3}, 2, 1500, virtio::kEveryTapsOffloads};
    const virtio::VirtioDevice::Place place{s.ram.memory(), s.interrupt};
    return std::make_unique<virtio::Net>(spec, std::vector<virtio::Tap>(), place);
}

void constrain_net(Message& message, Random& random) {
    using namespace virtio;
    auto& net = dynamic_cast<state::VirtioNet&>(message);
    state::VirtioTransport& transport = *net.mutable_transport();
    const uint64_t features =
        transport.driver_features() & (kNetMultiQueue | kNetGuestChecksum | kNetGuestTso4);
    constrain_transport(transport, 5, random);
    transport.mutable_queues(4)->set_size(1u << random() % 7);
    transport.set_driver_features(features | kRingFeatures);
    net.set_active_queue_pairs((features & kNetMultiQueue) != 0 ? 1 + random() % 2 : 1);
    net.set_guest_offloads(net.guest_offloads() & features & kNetGuestOffloads);
    net.mutable_mac()->resize(6);
    for (std::string* list : {net.mutable_unicast(), net.mutable_multicast()})
        list->resize(list->size() / 6 * 6);
    if (net.too_many_unicast()) net.set_unicast("");
    if (net.too_many_multicast()) net.set_multicast("");
}

std::unique_ptr<Device> make_rng(Surroundings& s) {
    return std::make_unique<virtio::Rng>(virtio::VirtioDevice::Place{s.ram.memory(), s.interrupt});
}

void constrain_rng(Message& message, Random& random) {
    auto& transport = *dynamic_cast<state::VirtioRng&>(message).mutable_transport();
    constrain_transport(transport, 1, random);
    transport.mutable_queues(0)->set_size(1u << random() % 7);
}

std::unique_ptr<Device> make_console(Surroundings& s) {
    return std::make_unique<virtio::ConsolePort>(
        s.console, virtio::VirtioDevice::Place{s.ram.memory(), s.interrupt});
}

void constrain_console(Message& message, Random& random) {
    auto& console = dynamic_cast<state::VirtioConsole&>(message);
    constrain_transport(*console.mutable_transport(), 2, random);
    console.set_taken_of_next(console.taken_of_next() & UINT32_MAX);
}

void constrain_acpi_pm(Message& message, Random&) {
    auto& pm = dynamic_cast<state::AcpiPm&>(message);
    pm.set_status(pm.status() & 0x0100);
    pm.set_enable(pm.enable() & 0x0521);
    pm.set_control(pm.control() & 0x1C02);
}

void constrain_rtc(Message& message, Random&) {
    auto& rtc = dynamic_cast<state::Rtc&>(message);
    rtc.set_index(rtc.index() & 0x7F);
    rtc.set_control_a(rtc.control_a() & 0x7F);
    rtc.set_control_b(rtc.control_b() & 0xFF);
    rtc.set_offset_seconds(rtc.offset_seconds() % (int64_t{1} << 38));
    rtc.set_offset_ns(rtc.offset_ns() % 1'000'000'000);
    rtc.mutable_memory()->resize(128, 'm');
}

const std::vector<Subject>& subjects() {
    static const std::vector<Subject> kSubjects{
        {"serial", [](Surroundings& s) { return std::make_unique<Serial>("serial0", s.line, s.console); },
            [] { return std::make_unique<state::Serial>(); }, constrain_serial, {"interrupt_level"}},
        {"reset-control", [](Surroundings& s) { return std::make_unique<ResetControl>(s.machine); },
            [] { return std::make_unique<state::ResetControl>(); },
            [](Message& m, Random&) {
                auto& reset = dynamic_cast<state::ResetControl&>(m);
                reset.set_value(reset.value() & 0x0E);
            },
            {}},
        {"acpi-pm", [](Surroundings& s) { return std::make_unique<AcpiPm>(s.line, s.machine, s.clock); },
            [] { return std::make_unique<state::AcpiPm>(); }, constrain_acpi_pm, {}},
        {"rtc", [](Surroundings& s) { return std::make_unique<Rtc>(s.clock); },
            [] { return std::make_unique<state::Rtc>(); }, constrain_rtc, {}},
        {"virtio-blk", make_disk, [] { return std::make_unique<state::VirtioBlk>(); }, constrain_disk, {}},
        {"virtio-console", make_console, [] { return std::make_unique<state::VirtioConsole>(); },
            constrain_console, {}},
        {"virtio-net", make_net, [] { return std::make_unique<state::VirtioNet>(); }, constrain_net, {}},
        {"virtio-rng", make_rng, [] { return std::make_unique<state::VirtioRng>(); }, constrain_rng, {}},
    };
    return kSubjects;
}

std::string random_bytes(Random& random, size_t most) {
    std::string bytes(random() % (most + 1), '\0');
    for (char& c : bytes)
        c = static_cast<char>(random());
    return bytes;
}

void fill(Message& message, Random& random) {
    const auto& reflection = *message.GetReflection();
    for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
        const FieldDescriptor* field = message.GetDescriptor()->field(i);
        if (field->is_repeated()) {
            REQUIRE_MESSAGE(field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE,
                "teach this test repeated fields: ", field->full_name());
            for (auto count = random() % 5; count > 0; --count)
                fill(*reflection.AddMessage(&message, field), random);
            continue;
        }
        switch (field->cpp_type()) {
        case FieldDescriptor::CPPTYPE_UINT32:
            reflection.SetUInt32(&message, field, static_cast<uint32_t>(random()));
            break;
        case FieldDescriptor::CPPTYPE_UINT64:
            reflection.SetUInt64(&message, field, (uint64_t{random()} << 32) | random());
            break;
        case FieldDescriptor::CPPTYPE_INT64:
            reflection.SetInt64(&message, field, static_cast<int64_t>((uint64_t{random()} << 32) | random()));
            break;
        case FieldDescriptor::CPPTYPE_BOOL:
            reflection.SetBool(&message, field, random() % 2 == 0);
            break;
        case FieldDescriptor::CPPTYPE_STRING:
            reflection.SetString(&message, field, random_bytes(random, 200));
            break;
        case FieldDescriptor::CPPTYPE_MESSAGE:
            fill(*reflection.MutableMessage(&message, field), random);
            break;
        default:
            FAIL("teach this test the type of ", field->full_name());
        }
    }
}

StateSchema schema_of(const Device& device) {
    return std::get<StateSchema>(device.state());
}

std::string valid_state(const Subject& subject, Random& random) {
    const auto message = subject.message();
    fill(*message, random);
    subject.constrain(*message, random);
    return *serialise_state(*message);
}

// `message` without its derived fields, as text for comparing and for the failure's report.
std::string comparable(const Subject& subject, const std::string& bytes) {
    const auto message = subject.message();
    REQUIRE(message->ParseFromString(bytes));
    for (const auto& name : subject.derived) {
        const auto* field = message->GetDescriptor()->FindFieldByName(name);
        REQUIRE(field != nullptr);
        message->GetReflection()->ClearField(message.get(), field);
    }
    return message->DebugString();
}

bool is_default(const Message& message, const FieldDescriptor* field) {
    const auto& reflection = *message.GetReflection();
    if (field->is_repeated()) return reflection.FieldSize(message, field) == 0;
    switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_UINT32:
        return reflection.GetUInt32(message, field) == 0;
    case FieldDescriptor::CPPTYPE_UINT64:
        return reflection.GetUInt64(message, field) == 0;
    case FieldDescriptor::CPPTYPE_INT64:
        return reflection.GetInt64(message, field) == 0;
    case FieldDescriptor::CPPTYPE_BOOL:
        return !reflection.GetBool(message, field);
    case FieldDescriptor::CPPTYPE_STRING:
        return reflection.GetString(message, field).empty();
    default:
        return false;
    }
}

// Which fields, also of inner messages, have a value other than 0.
void note_values(const Message& message, const std::string& prefix, std::map<std::string, bool>& seen) {
    const auto& reflection = *message.GetReflection();
    for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
        const auto* field = message.GetDescriptor()->field(i);
        const std::string name = prefix + field->name();
        if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE)
            seen[name] |= !is_default(message, field);
        else if (!field->is_repeated())
            note_values(reflection.GetMessage(message, field), name + ".", seen);
        else
            for (int k = 0; k < reflection.FieldSize(message, field); ++k)
                note_values(reflection.GetRepeatedMessage(message, field, k), name + ".", seen);
    }
}

TEST_CASE("a device gives back every field of the state it was given") {
    for (const Subject& subject : subjects()) {
        CAPTURE(subject.name);
        Random random(1);
        std::map<std::string, bool> seen; // field: had a value other than 0 after a save
        for (int round = 0; round < 300; ++round) {
            Surroundings around;
            const auto device = subject.make(around);
            const std::string given = valid_state(subject, random);
            const auto loaded = device->load(given, schema_of(*device).version);
            REQUIRE_MESSAGE(loaded.has_value(), (loaded ? "" : loaded.error().message));
            const auto saved = device->save();
            REQUIRE(saved);
            CHECK(comparable(subject, given) == comparable(subject, *saved));

            // Derived fields are settled after one load: a second one changes nothing at all.
            Surroundings elsewhere;
            const auto second = subject.make(elsewhere);
            REQUIRE(second->load(*saved, schema_of(*device).version));
            CHECK(*second->save() == *saved);

            const auto message = subject.message();
            REQUIRE(message->ParseFromString(*saved));
            note_values(*message, "", seen);
        }
        for (const auto& [field, had_value] : seen)
            CHECK_MESSAGE(had_value, field, " was always 0");
    }
}

TEST_CASE("hostile state is refused whole, with a sentence, or taken whole") {
    for (const Subject& subject : subjects()) {
        CAPTURE(subject.name);
        Random random(2);
        Surroundings around;
        const auto device = subject.make(around);
        const uint32_t version = schema_of(*device).version;
        int refused = 0;
        for (int round = 0; round < 3000; ++round) {
            std::string bytes = valid_state(subject, random);
            switch (random() % 4) {
            case 0:
                bytes = random_bytes(random, 64);
                break;
            case 1:
                bytes.resize(random() % (bytes.size() + 1));
                break;
            case 2:
                bytes[random() % bytes.size()] ^= static_cast<char>(1 << random() % 8);
                break;
            default:
                bytes += random_bytes(random, 8);
                break;
            }
            const std::string before = *device->save();
            const auto loaded = device->load(bytes, version);
            if (loaded) continue;
            ++refused;
            CHECK(loaded.error().message.find(schema_of(*device).section) != std::string::npos);
            CHECK(*device->save() == before);
        }
        CHECK(refused > 500);
    }
}

TEST_CASE("a field beyond its range, an unknown one and an absent one are refused") {
    for (const Subject& subject : subjects()) {
        CAPTURE(subject.name);
        Random random(3);
        Surroundings around;
        const auto device = subject.make(around);
        const uint32_t version = schema_of(*device).version;
        const std::string good = valid_state(subject, random);
        REQUIRE(device->load(good, version));

        const auto unknown = device->load(good + std::string("\xF8\x07\x01", 3), version); // field 127
        REQUIRE_FALSE(unknown);
        CHECK(unknown.error().message.find("does not know") != std::string::npos);

        const auto message = subject.message();
        const auto& reflection = *message->GetReflection();
        for (int i = 0; i < message->GetDescriptor()->field_count(); ++i) {
            const auto* field = message->GetDescriptor()->field(i);
            if (field->is_repeated()) continue; // none is a number too
            REQUIRE(message->ParseFromString(good));
            reflection.ClearField(message.get(), field);
            const auto absent = device->load(message->SerializeAsString(), version);
            REQUIRE_FALSE(absent);
            CHECK(absent.error().message.find(field->name()) != std::string::npos);

            REQUIRE(message->ParseFromString(good));
            if (field->cpp_type() == FieldDescriptor::CPPTYPE_UINT32)
                reflection.SetUInt32(message.get(), field, UINT32_MAX);
            else if (field->cpp_type() == FieldDescriptor::CPPTYPE_INT64)
                reflection.SetInt64(message.get(), field, INT64_MIN);
            else if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING)
                reflection.SetString(message.get(), field, std::string(64 << 10, 'x'));
            else
                continue;
            const auto beyond = device->load(message->SerializeAsString(), version);
            REQUIRE_FALSE(beyond);
            CHECK(beyond.error().message.find(field->name()) != std::string::npos);
        }
    }
}

TEST_CASE("versions outside the schema are refused and named") {
    for (const Subject& subject : subjects()) {
        CAPTURE(subject.name);
        Random random(4);
        Surroundings around;
        const auto device = subject.make(around);
        const auto schema = schema_of(*device);
        const std::string good = valid_state(subject, random);
        for (const uint32_t version : {schema.version + 1, schema.oldest_loadable - 1, UINT32_MAX}) {
            const auto loaded = device->load(good, version);
            REQUIRE_FALSE(loaded);
            CHECK(loaded.error().message.find(std::to_string(version)) != std::string::npos);
        }
        CHECK_FALSE(device->load(std::string(kMaxStateBytes + 1, '\0'), schema.version));
    }
}

} // namespace
} // namespace liveupdate::vmm::test
