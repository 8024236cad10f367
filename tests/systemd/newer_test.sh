#!/bin/bash
# Type=notify-reload, which systemd has from 253 on, for whoever sets it by a drop-in: `systemctl reload` sends SIGHUP
# and waits for RELOADING=1 with MONOTONIC_USEC=, then for READY=1. Skipped where neither this system's systemd nor
# that of LIVEUPDATE_TEST_TREE is so new.
. "$(dirname "$0")/common.sh"
vmm=/usr/libexec/liveupdate/liveupdate-vmm
oldest=253
has=$(chroot "${LIVEUPDATE_TEST_TREE:-/}" systemctl --version 2>/dev/null | awk 'NR == 1 { print $2 }') || true
(( ${has:-0} >= oldest )) || { echo "SKIPPED: systemd ${has:-none} is older than $oldest; LIVEUPDATE_TEST_TREE names another tree"; exit 77; }

install_vmm() { inside sh -c "cp $1 $vmm.new && mv $vmm.new $vmm"; }
reload() { inside timeout 20 systemctl reload liveupdate@demo; }
sound() { contains "$(guest demo)" "errors=0 violations=0"; }

boot
vm_file demo
inside mkdir -p /run/systemd/system/liveupdate@.service.d
inside sh -c 'printf "[Service]\nType=notify-reload\nExecReload=\n" >/run/systemd/system/liveupdate@.service.d/type.conf; systemctl daemon-reload'
inside systemctl start liveupdate@demo
[[ $(inside systemctl show -P Type liveupdate@demo) == notify-reload ]] || fail "the type is not taken"
pid=$(main_pid demo)

say "a reload ends when the update has"
install_vmm "$build/bin/liveupdate-vmm-next"
reload || fail "the reload"
[[ $(status_of demo vmm.version) == 0.1.0+next && $(status_of demo state) == running ]] || fail "it was not updated"
contains "$(inside systemctl show -P StatusText liveupdate@demo)" "running 0.1.0+next"

say "a reload with nothing to do ends"
reload || fail "the reload"

say "an update that is refused: the manager is told, and the guest runs on"
vmm_pid=$(status_of demo vmm.pid)
install_vmm "$build/bin/counter-vmm"
reload || true # before 258 no manager knows of a reload of this type that failed
[[ $(state demo) == active && $(status_of demo vmm.pid) == "$vmm_pid" ]] || fail "the guest was touched"
[[ $(status_of demo last_update.outcome) == refused ]] || fail "it was not refused"

say "a reload while another update is under way waits for that one"
install_vmm "$build/bin/liveupdate-vmm"
sed -i 's/50ms/2s/' "$work/vms/demo.toml"
inside cp "$work/vms/demo.toml" /etc/liveupdate/vms/
inside kill -9 "$pid" # a new supervisor reads the file anew
has_successor() { [[ $(main_pid demo) != "$pid" && $(state demo) == active ]]; }
wait_for "no supervisor came after the one that was killed" has_successor
pid=$(main_pid demo)
inside liveupdate now demo >/dev/null & update=$!
is_reloading() { [[ $(state demo) == reloading ]]; }
wait_for "the unit does not reload in an update" is_reloading
reload || fail "the reload"
wait "$update" || fail "the update"
[[ $(status_of demo vmm.version) == 0.1.0 && $(main_pid demo) == "$pid" ]] || fail "not updated"
[[ $(state demo) == active ]] || fail "the unit is $(state demo)"
sound
say "passed on systemd $has"
