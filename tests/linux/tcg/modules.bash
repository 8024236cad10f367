# Sourced: modules of Debian's kernel for an initramfs. `kernel` is the folder that get_kernel prints.

module_path() { find "$kernel/modules" -name "${1//[-_]/[-_]}.ko" -print -quit; }

# module_list LIST NAME...: appends the modules and what they depend on, in the order in which they can be loaded.
module_list() {
    local list=$1 name path needed
    shift
    for name in "$@"; do
        path=$(module_path "$name")
        [[ -n $path ]] || continue # built in
        grep -qxF "$path" "$list" 2>/dev/null && continue
        needed=$(objcopy -O binary --only-section=.modinfo "$path" /dev/stdout | tr '\0' '\n' |
            sed -n 's/^depends=//p' | tr ',' ' ')
        # shellcheck disable=SC2086
        module_list "$list" $needed
        echo "$path" >>"$list"
    done
}

# put_modules LIST INITRAMFS-LIST: the modules, and /modules, which names them in order.
put_modules() {
    local path
    while read -r path; do
        echo "file /lib/${path##*/} 0644 $path"
        echo "/lib/${path##*/}" >>"$1.names"
    done <"$1" >>"$2"
    echo "file /modules 0644 $1.names" >>"$2"
}

# guest_initramfs BUILD WORK OUT: the Linux guest's program, with the drivers that it needs under the unmodified
# kernel, on MMIO and on PCI.
guest_initramfs() {
    local build=$1 work=$2 out=$3
    module_list "$work/guest-modules" virtio_mmio virtio_pci virtio_blk virtio_net virtio-rng virtio_console \
        button evdev crc32c_generic ext4
    cp "$build/tests/linux/initrd.list" "$work/guest.list"
    put_modules "$work/guest-modules" "$work/guest.list"
    "$build/bin/make_initramfs" "$work/guest.list" "$out"
}
