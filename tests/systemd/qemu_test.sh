#!/bin/bash
# Guests of QEMU under units: hardening, the descriptor store, reload, and an upgrade of QEMU's own package, which
# updates them; a QEMU that does not start, and one that does not know the guest's machine; stop.
. "$(dirname "$0")/common.sh"

qemu=/usr/bin/qemu-system-x86_64
[[ -x ${LIVEUPDATE_TEST_TREE:-}$qemu ]] || { echo "SKIPPED: there is no ${LIVEUPDATE_TEST_TREE:-}$qemu"; exit 77; }

counter() { local line; line=$(guest "$1"); line=${line#counter=}; echo "${line%% *}"; }
status_text() { inside systemctl show -P StatusText "liveupdate@$1"; }
sound() { # the guests run in one QEMU each, and none was started twice
    local name starts
    for name in web micro; do
        contains "$(guest $name)" "errors=0"
        starts=$(inside journalctl --no-pager -q -o cat MESSAGE_ID=2cb2aaa5fc8d4f04abeb1e14bb0a437a LIVEUPDATE_VM=$name | wc -l)
        (( starts == 1 )) || fail "$name was started $starts times"
    done
    wait_for "there is not one QEMU for each guest" two_qemus
}
two_qemus() { (( $(inside pgrep -c qemu-system) == 2 )); }
has_successor() { # of the main process PID of a VM NAME
    local now
    now=$(main_pid "$1")
    (( now > 1 && now != $2 )) && [[ $(state "$1") == active ]] && status_of "$1" state >/dev/null
}
kill_supervisor() {
    local pid
    pid=$(main_pid "$1")
    (( pid > 1 )) || fail "there is no main process"
    inside kill -9 "$pid"
    wait_for "no successor" has_successor "$1" "$pid"
}

# qemu_package NUMBER BINARY: the installed package of QEMU, with another version and another binary.
qemu_package() {
    inside bash -s "$work/qemu-$1.deb" "$1" "$2" "$qemu" <<'P'
set -euo pipefail
package=$(dpkg-query -S "$4"); package=${package%%:*}
tree=$(mktemp -d)
dpkg-query -L "$package" | while read -r path; do
    if [[ -d $path && ! -L $path ]]; then continue; fi
    mkdir -p "$tree$(dirname "$path")"; cp -a "$path" "$tree$path"
done
install -m 755 "$3" "$tree$4"
mkdir -m 755 "$tree/DEBIAN"
dpkg-query -s "$package" | sed '/^Status:/d; /^Conffiles:/,/^[^ ]/{/^Conffiles:/d; /^ /d}' |
    sed "s/^Version: .*/&+test$2/" >"$tree/DEBIAN/control"
dpkg-deb -Znone -b "$tree" "$1" >/dev/null
rm -r "$tree"
P
}
upgrade() { inside apt-get install -y --allow-downgrades "$@" 2>&1; }

# qemu_vm NAME MACHINE [TOML]
qemu_vm() {
    mkdir -p "$work/vms"
    cat >"$work/vms/$1.toml" <<TOML
[vmm]
driver = "qemu"
[qemu]
machine = "$2"
# Not every KVM lets IA32_ARCH_CAPABILITIES be set, and QEMU dies of that.
cpu = "host,-arch-capabilities"
[machine]
vcpus = 1
kernel = "$build/tests/guests/clock.elf"
cmdline = "vcpus=1 skew_us=1000"
[[memory]]
size = "64M"
[update]
probation = "50ms"
blackout_limit = "5s"
[policy]
stop_timeout = "0s"
${3:-}
TOML
    inside mkdir -p /etc/liveupdate/vms
    inside cp "$work/vms/$1.toml" "/etc/liveupdate/vms/$1.toml"
}

boot
inside truncate -s 16M /var/lib/liveupdate/web.raw
qemu_vm web q35 $'[[disk]]\npath = "/var/lib/liveupdate/web.raw"\nformat = "raw"'
qemu_vm micro microvm,pit=on,pic=on,rtc=off

say "start: a board with SeaBIOS and one with its own firmware, as the unit's hardening lets them"
inside systemctl start liveupdate@web liveupdate@micro
for name in web micro; do
    [[ $(state $name) == active ]] || fail "the unit is $(state $name)"
    pid=$(status_of $name vmm.pid)
    [[ $(inside readlink "/proc/$pid/exe") == "$qemu" ]] || fail "$name runs in $(inside readlink "/proc/$pid/exe")"
    contains "$(inside cat "/proc/$pid/cgroup")" "liveupdate-vmm-$name-$pid.scope"
    contains "$(inside cat "/proc/$pid/status")" $'NoNewPrivs:\t1'
    contains "$(inside cat "/proc/$pid/status")" $'Seccomp:\t2'
    contains "$(status_text $name)" "running $(status_of $name vmm.version) in VMM $pid"
done
sound

say "a supervisor that is killed is succeeded, and QEMU and guest stay"
pid=$(status_of web vmm.pid)
before=$(counter web)
kill_supervisor web
[[ $(status_of web vmm.pid) == "$pid" ]] || fail "another VMM runs"
(( $(counter web) > before )) || fail "the guest was restarted"
contains "$(inside journalctl --no-pager -q -o cat MESSAGE_ID=e941f4631b714744b527e2ef1aa1e878 LIVEUPDATE_VM=web)" \
    "adopted the VMM with pid $pid ($qemu)"
sound

say "so it is when its runtime folder was removed: the manager has kept QEMU's monitor"
inside rm -r /run/liveupdate/web
kill_supervisor web
[[ $(status_of web vmm.pid) == "$pid" ]] || fail "another VMM runs"
(( $(counter web) > before )) || fail "the guest was restarted"
sound

say "a reload with a new supervisor on disk: it becomes that one, and goes on with QEMU's monitor"
other_build_id "$build/bin/liveupdated" "$work/liveupdated"
inside sh -c "install -m 755 $work/liveupdated /usr/libexec/liveupdate/liveupdated.new &&
    mv /usr/libexec/liveupdate/liveupdated.new /usr/libexec/liveupdate/liveupdated"
for name in web micro; do
    supervisor=$(main_pid $name) vmm=$(status_of $name vmm.pid)
    inside systemctl reload "liveupdate@$name"
    [[ $(main_pid $name) == "$supervisor" ]] || fail "the supervisor was started anew"
    inside cmp "/proc/$supervisor/exe" "$work/liveupdated" || fail "the supervisor is the old one"
    [[ $(status_of $name vmm.pid) == "$vmm" ]] || fail "another VMM runs"
done
(( $(counter web) > before )) || fail "the guest was restarted"
sound

say "a reload without a new QEMU changes nothing"
inside systemctl reload liveupdate@web
[[ $(status_of web vmm.pid) == "$pid" ]] || fail "a reload without a new VMM changed it"

say "an upgrade of QEMU's package with apt updates its guests"
other_build_id "$qemu" "$work/qemu-1"
started=$(status_of web vmm.build_id)
before="$(counter web) $(counter micro)"
qemu_package 1 "$work/qemu-1"
said=$(upgrade "$work/qemu-1.deb") || fail "apt: $said"
version=$(status_of web vmm.version)
for name in web micro; do
    contains "$said" "$name: updated $version (build ${started:0:8}) -> $version (build "
    [[ $(status_of $name vmm.build_id) != "$started" ]] || fail "$name was not updated"
    [[ $(status_of $name vmm.build_id) == "$(status_of $name on_disk.build_id)" ]] || fail "$name runs another QEMU"
    [[ $(status_of $name outdated) == False ]] || fail "$name is outdated"
    inside cmp "/proc/$(status_of $name vmm.pid)/exe" "$work/qemu-1" || fail "$name runs another file"
    contains "$(inside liveupdate history $name)" "blackout"
    contains "$(status_text $name)" "ms downtime, less than a minute ago"
    echo "$said" | grep "^$name: "
    (( $(counter $name) > ${before%% *} )) || fail "$name was restarted"
    before=${before#* }
done
sound

say "a supervisor that is killed after the update finds the new QEMU"
pid=$(status_of web vmm.pid)
kill_supervisor web
[[ $(status_of web vmm.pid) == "$pid" ]] || fail "another VMM runs"
sound

say "a QEMU that does not start: apt succeeds, the guests stay, and it is said why"
LC_ALL=C sed 's/libpixman-1\.so\.0/libpixman-1.so.9/g' "$qemu" >"$work/no-library"
other_build_id "$work/no-library" "$work/qemu-2" 2
qemu_package 2 "$work/qemu-2"
pids="$(status_of web vmm.pid) $(status_of micro vmm.pid)"
said=$(upgrade "$work/qemu-2.deb") || fail "apt failed: $said"
[[ $(inside dpkg-query -W -f '${db:Status-Status}' liveupdate) == installed ]] || fail "half configured"
contains "$said" "micro: refused: $qemu: QEMU exited with status 127"
contains "$said" "web: not begun, because a canary failed"
contains "$said" "web: outdated, runs on"
echo "$said" | grep -E "^(micro|web): "
if inside systemctl reload liveupdate@web 2>/dev/null; then fail "the reload says that all is well"; fi
for name in web micro; do
    [[ $(state $name) == active && $(status_of $name outdated) == True ]] || fail "$name is not told as outdated"
    contains "$(inside liveupdate status $name)" "what runs is outdated"
    contains "$(inside liveupdate status $name)" "libpixman-1.so.9: cannot open shared object file"
    contains "$(inside systemctl status --no-pager "liveupdate@$name")" "last update refused, less than a minute ago"
done
[[ "$(status_of web vmm.pid) $(status_of micro vmm.pid)" == "$pids" ]] || fail "a guest was touched"
sound

say "systemctl reload takes the guest to a QEMU that starts"
other_build_id "$qemu" "$work/qemu-3" 3
inside sh -c "install -m 755 $work/qemu-3 $qemu.new && mv $qemu.new $qemu"
inside systemctl reload liveupdate@web liveupdate@micro
for name in web micro; do
    inside cmp "/proc/$(status_of $name vmm.pid)/exe" "$work/qemu-3" || fail "$name runs another file"
done
sound

say "a QEMU that makes its code as it runs (tcg) needs what the unit denies, and starts where it is allowed"
qemu_vm slow q35
inside sed -i 's/^cpu = .*/cpu = "max"\naccel = "tcg"/' /etc/liveupdate/vms/slow.toml
if inside systemctl start liveupdate@slow 2>/dev/null; then fail "the unit lets memory be written and executed"; fi
inside journalctl --no-pager -q -o cat -u liveupdate@slow -t liveupdated
inside mkdir -p /run/systemd/system/liveupdate@slow.service.d
inside sh -c 'printf "[Service]\nMemoryDenyWriteExecute=no\n" >/run/systemd/system/liveupdate@slow.service.d/tcg.conf; systemctl daemon-reload'
inside systemctl start liveupdate@slow
contains "$(status_text slow)" "running"
inside systemctl stop liveupdate@slow

say "stop ends QEMU in order, and nothing is left"
inside systemctl stop liveupdate@web liveupdate@micro
[[ $(state web) == inactive && $(state micro) == inactive ]] || fail "the units are $(state web), $(state micro)"
if inside pgrep qemu-system; then fail "a QEMU is left"; fi
if inside journalctl --no-pager -q -o cat -t liveupdated -g "killed by signal"; then fail "QEMU was killed"; fi
say "passed"
