#!/bin/bash
# Packages: an upgrade of the VMM updates the guest that runs; of the supervisor, of both at once; a VMM that cannot
# take the guest; the three policies; who may use the control socket; needrestart; removal and purge.
. "$(dirname "$0")/common.sh"

vmm=/usr/libexec/liveupdate/liveupdate-vmm
policy() { printf '[rollout]\n%s\n' "$1" >"$work/liveupdate.toml"; inside cp "$work/liveupdate.toml" /etc/liveupdate/liveupdate.toml; }
upgrade() { inside dpkg --force-confold,overwrite -i "$@" 2>&1; }
sound() { contains "$(guest demo)" "errors=0 violations=0"; }
counter() { local line; line=$(guest demo); line=${line#counter=}; echo "${line%% *}"; }
vmm_package() { changed_package liveupdate-vmm "$1" "$work/vmm-$1.deb" "$vmm=$2"; }

boot

say "libhandoff-dev is what another VMM can be built with"
if inside sh -c 'command -v cmake && command -v c++' >/dev/null; then
    inside sh -c "dpkg --force-depends -i $work/packages/libhandoff-dev_*.deb" >/dev/null 2>&1 || fail "it cannot be installed"
    cp -r "$source/handoff/example" "$work/example"
    said=$(inside sh -c "cmake -S $work/example -B $work/example/build && cmake --build $work/example/build" 2>&1) ||
        fail "handoff/example cannot be built with it: $said"
else
    echo "SKIPPED: there is no cmake, or no compiler"
fi

vm_file demo $'[policy]\ngroup = "liveupdate"'
inside systemctl start liveupdate@demo
started=$(status_of demo vmm.build_id)
vmm_package 0.2 "$build/bin/liveupdate-vmm-next"
vmm_package 0.3 "$build/bin/counter-vmm"
vmm_package 0.4 "$build/bin/liveupdate-vmm"
vmm_package 0.5 "$build/bin/liveupdate-vmm-next"
vmm_package 0.6 "$build/bin/liveupdate-vmm"

say "an upgrade of the VMM's package updates the guest"
before=$(counter)
said=$(inside apt-get install -y "$work/vmm-0.2.deb" 2>&1) || fail "apt: $said"
contains "$said" "demo: updated 0.1.0 -> 0.1.0+next, blackout"
(( $(counter) > before )) || fail "the guest was restarted"
[[ $(status_of demo vmm.build_id) != "$started" && $(status_of demo outdated) == False ]] || fail "not updated"
contains "$(inside liveupdate history demo)" "blackout"
sound

say "a VMM that cannot take the guest: apt succeeds, the guest stays, and it is said why"
before=$(status_of demo vmm.pid)
said=$(inside apt-get install -y "$work/vmm-0.3.deb" 2>&1) || fail "apt failed: $said"
contains "$said" "demo: refused"
contains "$said" "demo: outdated"
[[ $(inside dpkg-query -W -f '${db:Status-Status}' liveupdate) == installed ]] || fail "half configured"
[[ $(status_of demo vmm.pid) == "$before" && $(status_of demo outdated) == True ]] || fail "the guest was touched"
echo "$said" | grep "demo:"
said=$(inside liveupdate status demo)
contains "$said" "what runs is outdated"
contains "$said" "refused: the destination (counter-vmm 1.0) does not know the state section 'vcpu'"
sound

say "policy flag: nothing is updated, and it is told"
policy 'policy = "flag"'
said=$(upgrade "$work/vmm-0.4.deb") || fail "dpkg: $said"
contains "$said" "demo: outdated"
[[ $(status_of demo vmm.pid) == "$before" ]] || fail "updated against the policy"

say "policy window: a timer of systemd's will do it"
policy $'policy = "window"\nwindow = "*-*-* 03:00"'
said=$(upgrade "$work/vmm-0.5.deb") || fail "dpkg: $said"
inside systemctl is-active --quiet liveupdate-window.timer || fail "no timer: $said"
said=$(upgrade "$work/vmm-0.4.deb") || fail "dpkg: $said" # a second one takes the first one's place
policy 'policy = "flag"' # changed while the timer waits
inside systemctl start --wait liveupdate-window.service
[[ $(status_of demo vmm.pid) == "$before" ]] || fail "updated in a window that the policy has no more"
policy $'policy = "window"\nwindow = "*-*-* 03:00"'
inside systemctl start liveupdate-window.service
is_up_to_date() { [[ $(status_of demo outdated) == False ]]; }
wait_for "the window came and nothing was updated" is_up_to_date
[[ $(status_of demo vmm.version) == 0.1.0 ]] || fail "the window came and nothing was updated"
inside systemctl stop liveupdate-window.timer

say "a policy that is wrong is said, and no package fails"
policy 'policy = "sometimes"'
said=$(upgrade "$work/vmm-0.5.deb") || fail "dpkg: $said"
contains "$said" "liveupdate.toml:2"
policy 'policy = "automatic"'

say "both packages at once: one rollout, the supervisor first"
other_build_id "$build/bin/liveupdated" "$work/liveupdated"
changed_package liveupdate 0.7 "$work/liveupdate-0.7.deb" "/usr/libexec/liveupdate/liveupdated=$work/liveupdated"
inside liveupdate now demo --if-outdated >/dev/null || true
pid=$(main_pid demo)
said=$(upgrade "$work/liveupdate-0.7.deb" "$work/vmm-0.6.deb") || fail "dpkg: $said"
contains "$said" "demo: its supervisor was renewed; updated"
(( $(grep -c "demo: " <<<"$said") == 1 )) || fail "more than one rollout: $said"
[[ $(main_pid demo) == "$pid" ]] || fail "the main process changed"
inside cmp "/proc/$pid/exe" "$work/liveupdated" || fail "the supervisor is the old one"
sound

say "who may use the control socket"
inside useradd vm-stranger
inside useradd -G liveupdate vm-operator
if said=$(inside setpriv --reuid vm-stranger --regid vm-stranger --clear-groups env \
    LIVEUPDATE_RUNTIME_DIR=/run/liveupdate LIVEUPDATE_STATE_DIR=/tmp/s LIVEUPDATE_CONFIG_DIR=/etc/liveupdate/vms \
    liveupdate status demo 2>&1); then fail "a stranger was served: $said"; fi
contains "$said" "group 'liveupdate'"
echo "$said"
said=$(inside setpriv --reuid vm-operator --regid vm-operator --init-groups env \
    LIVEUPDATE_RUNTIME_DIR=/run/liveupdate LIVEUPDATE_STATE_DIR=/tmp/s LIVEUPDATE_CONFIG_DIR=/etc/liveupdate/vms \
    liveupdate status demo) || fail "a member of the group is refused: $said"
contains "$said" "demo - running"

say "needrestart leaves a unit with a guest alone, whose supervisor and VMM run deleted binaries"
if inside sh -c 'command -v needrestart' >/dev/null; then
    policy 'policy = "flag"'
    changed_package liveupdate 0.8 "$work/liveupdate-0.8.deb"
    said=$(upgrade "$work/liveupdate-0.8.deb" "$work/vmm-0.5.deb") || fail "dpkg: $said"
    contains "$(inside readlink "/proc/$pid/exe")" "(deleted)"
    vmm_pid=$(status_of demo vmm.pid)
    said=$(inside needrestart -b -r l 2>&1)
    contains "$said" "NEEDRESTART-SVC: liveupdate@demo.service" # it has seen them
    said=$(inside needrestart -r a 2>&1 </dev/null || true)
    [[ $(status_of demo vmm.pid) == "$vmm_pid" && $(main_pid demo) == "$pid" ]] || fail "needrestart restarted: $said"
    sound
    policy 'policy = "automatic"'
    inside liveupdate rollout >/dev/null || fail "no rollout after it"
else
    echo "SKIPPED: needrestart is not installed"
fi

say "the package of another VMM: a trigger on the path of qemu-system-x86_64"
qemu=/usr/bin/qemu-system-x86_64
other_vmm() { # VERSION FILE
    mkdir -p "$work/other/DEBIAN"
    printf 'Package: other-vmm\nVersion: %s\nArchitecture: amd64\nMaintainer: nobody <nobody@localhost>\nDescription: a VMM\n' "$1" \
        >"$work/other/DEBIAN/control"
    install -D -m 755 "$2" "$work/other$qemu"
    dpkg-deb -Znone -b "$work/other" "$work/other-$1.deb" >/dev/null
}
other_vmm 1 "$build/bin/liveupdate-vmm"
other_vmm 2 "$build/bin/liveupdate-vmm-next"
inside dpkg --force-overwrite -i "$work/other-1.deb" >/dev/null 2>&1 || fail "the other VMM's package"
vm_file other
sed -i "1i [vmm]\nbinary = \"$qemu\"" "$work/vms/other.toml"
inside cp "$work/vms/other.toml" /etc/liveupdate/vms/
inside systemctl start liveupdate@other
said=$(upgrade "$work/other-2.deb") || fail "dpkg: $said"
contains "$said" "other: updated 0.1.0 -> 0.1.0+next"
contains "$(guest other)" "errors=0 violations=0"
inside systemctl stop liveupdate@other

say "removal and purge leave the guest alone, and say so"
said=$(inside dpkg --purge liveupdate 2>&1) || fail "purge: $said"
contains "$said" "the guest 'demo' still runs and was left alone"
contains "$said" "left in place: /etc/liveupdate/vms"
inside pgrep liveupdate-vmm >/dev/null || fail "the guest is gone"
say "passed"
