#include "vmm/boot/platform_tables.hpp"

#include "vmm/boot/acpi.hpp"
#include "vmm/boot/e820.hpp"
#include "vmm/boot/mp_table.hpp"

namespace liveupdate::vmm {

Result<uint64_t> write_platform_tables(const GuestMemory& memory, const Platform& platform) {
    const auto acpi = acpi_tables(platform, kAcpiTables);
    const auto mp = mp_table(platform, kMpTable);
    if (acpi.size() > kGenerationIdGpa - kAcpiTables || mp.size() > kHighRamStart - kMpTable)
        return Error(ErrorCode::kInternal, "the firmware's tables do not fit below 1 MiB");
    TRY(memory.write(kAcpiTables, acpi));
    TRY(memory.write(kMpTable, mp));
    return kAcpiTables;
}

} // namespace liveupdate::vmm
