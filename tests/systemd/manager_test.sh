#!/bin/bash
# What a supervisor and its service manager tell each other: the journal and its catalog, descriptors kept, the
# watchdog, SIGHUP, stop, restart; and what `liveupdate doctor` says of a unit.
. "$(dirname "$0")/common.sh"
vmm=/usr/libexec/liveupdate/liveupdate-vmm

install_vmm() { inside sh -c "cp $1 $vmm.new && mv $vmm.new $vmm"; }
sound() { contains "$(guest demo)" "errors=0 violations=0"; }
id_of() { sed -n "s/.*EventKind::k$1, \"\([0-9a-f]*\)\".*/\1/p" "$source/supervisor/journal.cpp"; }
event() { inside journalctl --no-pager -q -o cat "MESSAGE_ID=$(id_of "$1")" LIVEUPDATE_VM=demo; } # KIND: its messages
explained() { inside journalctl --no-pager -q -x "MESSAGE_ID=$(id_of "$1")" LIVEUPDATE_VM=demo; }
field() { # KIND FIELD: of its last message
    inside journalctl --no-pager -q -o json -n 1 "MESSAGE_ID=$(id_of "$1")" |
        python3 -c "import json,sys; print(json.load(sys.stdin).get('$2', ''))"
}
kept() { inside systemctl show -P NFileDescriptorStore liveupdate@demo; }
has_successor() { # of the main process PID
    local now
    now=$(main_pid demo)
    (( now > 1 && now != $1 )) && [[ $(state demo) == active ]] && status_of demo state >/dev/null
}
kill_supervisor() {
    local pid
    pid=$(main_pid demo)
    (( pid > 1 )) || fail "there is no main process"
    inside kill -9 "$pid"
    wait_for "no successor: $(state demo)" has_successor "$pid"
}

say "every event of the supervisor's has an entry in the catalog, and no other is there"
ids=$(sed -n 's/.*EventRow{EventKind::k[A-Za-z]*, "\([0-9a-f]*\)".*/\1/p' "$source/supervisor/journal.cpp" | sort)
(( $(wc -l <<<"$ids") >= 8 )) || fail "journal.cpp is not understood"
[[ $ids == "$(sed -n 's/^-- //p' "$source/systemd/liveupdate.catalog" | sort)" ]] || fail "journal.cpp and the catalog differ"

boot
[[ $(inside systemctl is-enabled liveupdate.target) == enabled ]] || fail "the target is not enabled"
for id in $ids; do
    contains "$(inside journalctl --dump-catalog "$id")" "Defined-By: liveupdate"
done
vm_file demo
inside systemctl start liveupdate@demo

say "the journal: what happened, to which VM, in which update; journalctl -x explains it"
contains "$(explained Started)" "A virtual machine has been started"
install_vmm "$build/bin/liveupdate-vmm-next"
inside systemctl reload liveupdate@demo
contains "$(explained Committed)" "The VMM under a running guest has been replaced"
[[ $(field Committed LIVEUPDATE_VM) == demo ]] || fail "the VM is not named"
[[ $(field Committed LIVEUPDATE_ID) == "$(status_of demo last_update.id)" ]] || fail "the update is not named"
[[ $(field Committed LIVEUPDATE_PHASE) == probation ]] || fail "the phase is '$(field Committed LIVEUPDATE_PHASE)'"
[[ $(field Committed LIVEUPDATE_ROLE) == destination ]] || fail "the role is '$(field Committed LIVEUPDATE_ROLE)'"
install_vmm "$build/bin/counter-vmm"
if inside systemctl reload liveupdate@demo 2>/dev/null; then fail "a VMM of another kind of guest was taken"; fi
[[ $(field Refused LIVEUPDATE_ROLE) == source ]] || fail "a refusal is not in the journal"

say "a descriptor that nobody knows is dropped, and that is said"
before=$(kept)
inside mkdir -p /run/systemd/system/liveupdate@.service.d
inside sh -c 'printf "[Service]\nNotifyAccess=all\n" >/run/systemd/system/liveupdate@.service.d/test.conf; systemctl daemon-reload'
# Sent from within the service's control group, as a confused helper program would.
inside python3 - "$(main_pid demo)" <<'P'
import array, os, socket, sys
environ = open(f"/proc/{sys.argv[1]}/environ").read().split("\0")
address = next(e for e in environ if e.startswith("NOTIFY_SOCKET=")).split("=", 1)[1]
group = next(l.split("::", 1)[1] for l in open(f"/proc/{sys.argv[1]}/cgroup").read().splitlines() if l.startswith("0::"))
open(f"/sys/fs/cgroup{group}/cgroup.procs", "w").write(str(os.getpid()))
to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
fd = os.memfd_create("stranger")
to.sendmsg([b"FDSTORE=1\nFDNAME=stranger"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))], 0,
           address.replace("@", "\0", 1) if address[0] == "@" else address)
ours, theirs = os.pipe()
to.sendmsg([b"BARRIER=1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs]))], 0,
           address.replace("@", "\0", 1) if address[0] == "@" else address)
os.close(theirs)
os.read(ours, 1)
P
(( $(kept) == before + 1 )) || fail "the test's descriptor was not kept: $(kept)"
kill_supervisor
contains "$(inside journalctl --no-pager -q -o cat -u liveupdate@demo)" "'stranger' was passed that nobody here knows; dropped"
(( $(kept) == before )) || fail "$(kept) descriptors are kept, not $before"
sound

say "a guest whose runtime folder was removed is found by what the manager has kept"
pid=$(status_of demo vmm.pid)
inside rm -r /run/liveupdate/demo
kill_supervisor
[[ $(status_of demo vmm.pid) == "$pid" ]] || fail "another VMM runs"
inside liveupdate now demo --binary "$build/bin/liveupdate-vmm" >/dev/null || fail "no update after that"
sound

say "SIGHUP, as a unit of Type=notify-reload sends it, updates what is outdated"
install_vmm "$build/bin/liveupdate-vmm-next"
inside systemctl kill --kill-whom=main -s HUP liveupdate@demo
is_next() { [[ $(status_of demo vmm.version) == 0.1.0+next && $(status_of demo state) == running ]]; }
wait_for "SIGHUP did not update it" is_next
sound

say "a supervisor that hangs: doctor names its journal"
pid=$(main_pid demo)
inside kill -STOP "$pid"
said=$(inside liveupdate doctor || true)
inside kill -CONT "$pid"
contains "$said" 'journalctl -u liveupdate@demo.service'

say "a supervisor that hangs: the watchdog ends it"
inside sh -c 'printf "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n" >/run/systemd/system/liveupdate@.service.d/test.conf; systemctl daemon-reload'
kill_supervisor # the interval is of the process
vmm_pid=$(status_of demo vmm.pid)
pid=$(main_pid demo)
sleep 4 # two intervals: a supervisor that works is left alone
[[ $(main_pid demo) == "$pid" ]] || fail "the watchdog ended a supervisor that works"
inside kill -STOP "$pid"
wait_for "the watchdog did not end it" has_successor "$pid"
contains "$(inside journalctl --no-pager -q -o cat -u liveupdate@demo)" "Watchdog timeout"
[[ $(status_of demo vmm.pid) == "$vmm_pid" ]] || fail "another VMM runs"
sound
inside sh -c 'rm -r /run/systemd/system/liveupdate@.service.d; systemctl daemon-reload'

say "stop: the guest powers itself off"
[[ $(inside "$build/bin/guest_watch" demo button) == counter=* ]] || fail "the guest does not listen"
inside systemctl stop liveupdate@demo
contains "$(inside journalctl --no-pager -q -o cat -u liveupdate@demo)" "demo: the guest has powered itself off"
[[ -z $(event Rebooted) ]] || fail "a stop is called a reboot"
if said=$(inside liveupdate now demo 2>&1); then fail "a stopped VM was updated: $said"; fi
contains "$said" "'demo' is not running; run \`systemctl start liveupdate@demo\`"
contains "$(inside liveupdate status demo || true)" "Next: run \`systemctl start liveupdate@demo\`"

say "restart is a reboot of the guest, and says so"
inside systemctl start liveupdate@demo
inside systemctl restart liveupdate@demo
contains "$(event Rebooted)" "reboots the guest"
contains "$(explained Rebooted)" "A guest is rebooted because its unit is restarted"
(( $(event Started | wc -l) == 3 )) || fail "the guest was started $(event Started | wc -l) times"
sound

say "a VMM that comes from no package: the path unit updates the guest"
install_vmm "$build/bin/liveupdate-vmm"
inside liveupdate now demo --if-outdated >/dev/null || true
inside systemctl start liveupdate-rollout.path
install_vmm "$build/bin/liveupdate-vmm-next"
wait_for "the path unit did not update it" is_next
sound

say "a guest that is lost is told"
inside kill -9 "$(status_of demo vmm.pid)"
is_lost() { [[ $(status_of demo state) == lost ]]; }
wait_for "it is $(status_of demo state)" is_lost
contains "$(explained Lost)" "A guest is lost"
contains "$(inside systemctl show -P StatusText liveupdate@demo)" "lost: "
say "passed"
