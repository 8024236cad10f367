#pragma once

namespace liveupdate::vmm::virtio {

// What has become of the io_urings that a disk's saved requests in flight are in.
enum class FormerRings {
    kCarried, // they come with the guest
    kGone,    // the guest comes out of a file: whoever had them has ended, and the kernel is done with them
};

} // namespace liveupdate::vmm::virtio
