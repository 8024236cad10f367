// Devices with several queues: Linux takes a queue by the CPU that sends, so work that wanders over the CPUs
// uses them all.
#pragma once

#include <string>

namespace linux_guest {

// Moves the calling thread to the CPU after the one that it was moved to before.
void next_cpu();

// How many request queues the driver of disk `name` ("vda") uses.
unsigned disk_queues(const std::string& name);

// Packets by queue of a virtio network card, as its driver has counted them: "rx0=1 rx1=2 tx0=3 tx1=4"; empty
// when the driver does not tell.
std::string queue_packets(const std::string& interface);

} // namespace linux_guest
