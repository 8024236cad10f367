// What the first process of a machine does for it: file systems, kernel modules, the end.
#pragma once

#include <string>

namespace linux_guest {

void mount_file_systems();
// The modules that /modules names, in its order; nothing without that file.
void load_modules();
std::string kernel_command_line();
// Kernel messages go to the log only, so that they do not break lines of the console.
void quiet_console();
// Follows the power button in a thread of its own: orderly() is called when it is pressed.
void on_power_button(void (*orderly)());
[[noreturn]] void power_off();

} // namespace linux_guest
