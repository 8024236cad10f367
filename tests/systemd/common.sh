# Sourced by the tests of this folder: a real systemd with the built packages installed, and small words to test
# with. Usage of each test: NAME_test.sh BUILD_FOLDER SOURCE_FOLDER
#
# LIVEUPDATE_TEST_TREE: the tree of another Debian, with another systemd, instead of a copy of this one. Made by
#   debootstrap --variant=minbase --include=systemd-sysv,dbus,procps,python3-minimal trixie FOLDER
set -euo pipefail

build=$(readlink -f "$1") source=$(readlink -f "$2")
work=$(mktemp -d "${TMPDIR:-/tmp}/liveupdate-systemd-XXXXXX")
machine=$work/machine
failures=0

cleanup() {
    local status=$?
    if (( status != 0 && status != 77 )) && [[ -e $machine/init ]]; then
        inside journalctl --no-pager -n 60 || true
    fi
    "$source/tests/support/real_systemd" stop "$machine" || true
    rm -rf "$work"
}
trap cleanup EXIT

inside() { "$source/tests/support/real_systemd" run "$machine" "$@"; }
say() { printf '== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*"; exit 1; }
contains() { [[ $1 == *"$2"* ]] || fail "'$2' is missing in: $1"; }
# wait_for WHAT COMMAND...: until COMMAND succeeds. WHAT is wrong where it never does; a busy machine is not.
wait_for() {
    local what=$1 end=$(( SECONDS + 60 ))
    shift
    until "$@" 2>/dev/null; do
        (( SECONDS < end )) || fail "$what"
        sleep 0.05
    done
}

export REAL_SYSTEMD_TREE=${LIVEUPDATE_TEST_TREE:-}
start_machine() { "$source/tests/support/real_systemd" start "$machine" "$build" "$work"; }

# What the build is linked to and another tree has not.
bring_libraries() {
    local known path
    known=$(inside ldconfig -p)
    for path in $(ldd "$build"/bin/liveupdate{,d,-vmm} "$build/bin/guest_watch" | awk '$2 == "=>" { print $3 }' | sort -u); do
        [[ $known == *"$(basename "$path") "* ]] || { mkdir -p "$work/lib"; cp -L "$path" "$work/lib"; }
    done
    [[ ! -d $work/lib ]] || inside sh -c "cp $work/lib/* /usr/local/lib && ldconfig"
}

# Boots, with the packages of this build installed.
boot() {
    command -v dpkg-deb >/dev/null || { echo "SKIPPED: there is no dpkg"; exit 77; }
    start_machine
    (cd "$build" && flock "$build/packages.lock" cpack -G DEB -B "$work/packages" >"$work/cpack.log" 2>&1) ||
        { cat "$work/cpack.log"; fail "cpack"; }
    [[ -z ${LIVEUPDATE_TEST_TREE:-} ]] || bring_libraries
    # A build with AddressSanitizer looks for leaks by ptrace, which the units' filter does not allow.
    inside systemctl set-environment ASAN_OPTIONS=detect_leaks=0
    inside sh -c "dpkg ${LIVEUPDATE_TEST_TREE:+--force-depends} -i $work/packages/liveupdate_*.deb $work/packages/liveupdate-vmm_*.deb" >"$work/dpkg.log" 2>&1 ||
        { cat "$work/dpkg.log"; fail "the packages cannot be installed"; }
}

# vm_file NAME [TOML]: a guest that counts, with the witness page.
vm_file() {
    mkdir -p "$work/vms"
    cat >"$work/vms/$1.toml" <<TOML
[machine]
vcpus = 1
kernel = "$build/tests/guests/clock.elf"
cmdline = "vcpus=1 gap_us=50 witness=0xfe000000"
[[memory]]
size = "32M"
[console]
type = "none"
[debug]
witness = true
[update]
probation = "50ms"
blackout_limit = "5s" # a busy machine is no error
${2:-}
TOML
    inside mkdir -p /etc/liveupdate/vms
    inside cp "$work/vms/$1.toml" "/etc/liveupdate/vms/$1.toml"
}

# changed_package NAME VERSION OUT [PATH=FILE]...: the built package with other files and another version.
changed_package() {
    local name=$1 version=$2 out=$3 change tree=$work/tree
    shift 3
    dpkg-deb -R "$work"/packages/"$name"_*.deb "$tree"
    sed -i "s/^Version: .*/Version: $version/" "$tree/DEBIAN/control"
    for change in "$@"; do install -m 755 "${change#*=}" "$tree${change%%=*}"; done
    dpkg-deb -Znone -b "$tree" "$out" >/dev/null
    rm -rf "$tree"
}

# other_build_id FILE OUT [NUMBER]: the same program as another build of it.
other_build_id() {
    python3 - "$@" <<'P'
import sys
data = bytearray(open(sys.argv[1], "rb").read())
note = data.find(b"\x03\0\0\0GNU\0") # NT_GNU_BUILD_ID
assert note >= 0, sys.argv[1] + " has no build-id"
data[note + 8] ^= int(sys.argv[3]) if len(sys.argv) > 3 else 0xff
open(sys.argv[2], "wb").write(data)
P
}

main_pid() { inside systemctl show -P MainPID "liveupdate@$1"; }
state() { inside systemctl show -P ActiveState "liveupdate@$1"; }
status_of() { inside liveupdate status --json "$1" | python3 -c "import json,sys
d=json.load(sys.stdin)
d=d[0] if isinstance(d,list) else d
for k in '$2'.split('.'): d=d[int(k)] if isinstance(d,list) else (d or {}).get(k)
print(d)"; }

# What the guest itself says: counter, and how often two VMMs ran it at once (the witness page of vmm/witness.hpp).
guest() { inside "$build/bin/guest_watch" "$1"; }
