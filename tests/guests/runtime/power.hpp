#pragma once
/// ACPI's fixed hardware, where the machine's FADT says that it is.

namespace tests::guests {

/// Soft-off. Returns at once; the machine ends a little later.
void power_off();

/// Listens to the power button, says so by clearing the report's `stop`, and returns once the button has been
/// pressed. Meanwhile the PM timer is held against the TSC: neither may jump.
void await_button();

} // namespace tests::guests
