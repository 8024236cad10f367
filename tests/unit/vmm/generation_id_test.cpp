#include "vmm/generation_id.hpp"

#include <doctest/doctest.h>

#include <set>

#include "supervisor/memory_layout.hpp"
#include "tests/unit/vmm/boot_fixture.hpp"

namespace liveupdate::vmm::test {
namespace {

struct Line final : InterruptLine {
    std::vector<bool> levels;
    void set(bool level) override { levels.push_back(level); }
};

handoff::proto::Machine machine_with(uint64_t gpa) {
    handoff::proto::Machine machine;
    machine.set_generation_id_gpa(gpa);
    return machine;
}

std::string id_in(const Ram& ram) {
    return {reinterpret_cast<const char*>(ram.bytes.data()) + kGenerationIdGpa, 16};
}

TEST_CASE("the supervisor tells the guest's place for its generation id that the VMM has") {
    CHECK(supervisor::kGenerationIdGpa == kGenerationIdGpa);
}

TEST_CASE("each draw is another, and nothing beside the 16 bytes is touched") {
    const Ram ram;
    std::set<std::string> seen{id_in(ram)};
    for (int i = 0; i < 8; ++i) {
        REQUIRE(GenerationId::draw(machine_with(kGenerationIdGpa), ram.memory));
        CHECK(seen.insert(id_in(ram)).second);
    }
    CHECK(ram.bytes[kGenerationIdGpa - 1] == 0xEE);
    CHECK(ram.bytes[kGenerationIdGpa + 16] == 0xEE);
}

TEST_CASE("a renewal is announced once, by an edge") {
    const Ram ram;
    Line line;
    GenerationId id(line);
    id.announce();
    CHECK(line.levels.empty());
    REQUIRE(id.renew(machine_with(kGenerationIdGpa), ram.memory));
    CHECK(line.levels.empty());
    id.announce();
    id.announce();
    CHECK(line.levels == std::vector<bool>{true, false});
}

TEST_CASE("a guest without a place for it is left alone, and one with another place is refused") {
    const Ram ram;
    Line line;
    GenerationId id(line);
    const auto before = ram.bytes;
    REQUIRE(id.renew(machine_with(0), ram.memory));
    id.announce();
    CHECK(line.levels.empty());
    const auto refused = id.renew(machine_with(0x1000), ram.memory);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == ErrorCode::kRefused);
    CHECK(ram.bytes == before);
}

} // namespace
} // namespace liveupdate::vmm::test
