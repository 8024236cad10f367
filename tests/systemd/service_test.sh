#!/bin/bash
# One unit: start, reload, a reload that fails, a supervisor that is killed at any moment, its own upgrade, stop,
# restart. LIVEUPDATE_TEST_KILLS: how often it is killed (10).
. "$(dirname "$0")/common.sh"
kills=${LIVEUPDATE_TEST_KILLS:-10}
vmm=/usr/libexec/liveupdate/liveupdate-vmm

install_vmm() { inside sh -c "cp $1 $vmm.new && mv $vmm.new $vmm"; }
counter() { local line; line=$(guest demo); line=${line#counter=}; echo "${line%% *}"; }
sound() {
    local line
    line=$(guest demo)
    contains "$line" "errors=0 violations=0"
}

boot
vm_file demo

say "start"
inside systemctl start liveupdate@demo
[[ $(state demo) == active ]] || fail "the unit is $(state demo)"
contains "$(inside systemctl show -P StatusText liveupdate@demo)" "running 0.1.0 in VMM"
sound
vmm_pid=$(status_of demo vmm.pid)
contains "$(inside cat "/proc/$vmm_pid/cgroup")" "liveupdate-vmm-demo-$vmm_pid.scope"
security=$(inside systemd-analyze security liveupdate@demo --no-pager | sed 's/@demo/@web1/; s/ *$//')
exposure=$(tail -1 <<<"$security")
contains "$exposure" "OK"
echo "$exposure"
# Other versions of systemd weigh other settings.
if [[ $(inside systemctl --version) == "systemd 252 "* ]]; then
    grep -qxF "$exposure" "$source/docs/operations.md" || fail "docs/operations.md tells another exposure than: $exposure"
    awk '$1 == "✗" { print $2 }' <<<"$security" >"$work/settings"
    while read -r setting; do
        grep -qF "✗ $setting " "$source/docs/operations.md" || fail "docs/operations.md does not tell of $setting"
    done <"$work/settings"
fi

# shellcheck disable=SC2016 # for the shell inside
[[ $(inside bash -c '. /usr/share/bash-completion/completions/liveupdate
    COMP_WORDS=(liveupdate now ""); COMP_CWORD=2; _liveupdate; echo "${COMPREPLY[*]}"') == demo ]] ||
    fail "bash does not complete the VM's name"

say "reload updates the VMM, and only when it is outdated"
inside systemctl reload liveupdate@demo
[[ $(status_of demo vmm.pid) == "$vmm_pid" ]] || fail "a reload without a new VMM changed it"
install_vmm "$build/bin/liveupdate-vmm-next"
before=$(counter)
inside systemctl reload liveupdate@demo
[[ $(status_of demo vmm.version) == 0.1.0+next ]] || fail "the VMM was not updated"
(( $(counter) > before )) || fail "the guest was restarted"
contains "$(inside systemctl show -P StatusText liveupdate@demo)" "downtime, less than a minute ago"
sound

say "an update that fails is a reload that fails, and the guest runs on"
install_vmm "$build/bin/counter-vmm" # a VMM, but of another kind of guest
vmm_pid=$(status_of demo vmm.pid)
if inside systemctl reload liveupdate@demo 2>/dev/null; then fail "the reload says that all is well"; fi
[[ $(state demo) == active && $(status_of demo vmm.pid) == "$vmm_pid" ]] || fail "the guest was touched"
[[ $(status_of demo last_update.outcome) == refused ]] || fail "it was not refused"
sound
install_vmm "$build/bin/liveupdate-vmm"

say "$kills x kill -9, also during updates"
(
    turn=0
    while [[ ! -e $work/enough ]]; do
        binary=$build/bin/liveupdate-vmm
        (( turn++ % 2 )) || binary=$binary-next
        inside liveupdate now demo --binary "$binary" >"$work/updates.log" 2>&1 || true
    done
) &
updater=$!
is_back() { # of the main process PID
    local now
    now=$(main_pid demo)
    (( now > 1 && now != $1 )) && [[ $(state demo) == active || $(state demo) == reloading ]]
}
for (( i = 0; i < kills; i++ )); do
    sleep "0.$(( RANDOM % 6 ))$(( RANDOM % 10 ))"
    pid=$(main_pid demo)
    (( pid > 1 )) || continue
    inside kill -9 "$pid"
    wait_for "the unit did not come back after kill $i" is_back "$pid"
done
touch "$work/enough"
wait "$updater"
(( $(inside systemctl show -P NRestarts liveupdate@demo) >= kills )) || fail "it was not restarted so often"
sound
(( $(counter) > before )) || fail "the guest was restarted"
is_alone() { (( $(inside pgrep -c liveupdate-vmm) == 1 )); } # the others end by themselves
wait_for "more than one VMM is left, or none" is_alone
starts=$(inside journalctl --no-pager -q -o cat MESSAGE_ID=2cb2aaa5fc8d4f04abeb1e14bb0a437a LIVEUPDATE_VM=demo | wc -l)
(( starts == 1 )) || fail "the guest was started $starts times"
adoptions=$(inside journalctl --no-pager -q -o cat MESSAGE_ID=e941f4631b714744b527e2ef1aa1e878 LIVEUPDATE_VM=demo | grep -c adopted) ||
    fail "no adoption is in the journal"
(( adoptions >= kills )) || fail "only $adoptions adoptions are in the journal"
say "adopted $(inside systemctl show -P NRestarts liveupdate@demo) times: $(guest demo)"

say "a rollback is known to a supervisor that was killed"
inside liveupdate now demo --binary "$build/bin/liveupdate-vmm-next" >/dev/null || true
previous=$(status_of demo previous.build_id)
inside kill -9 "$(main_pid demo)"
answers() { [[ $(state demo) == active ]] && status_of demo state >/dev/null; }
wait_for "the unit did not come back" answers
[[ $(status_of demo previous.build_id) == "$previous" ]] || fail "the previous binary is forgotten"
inside liveupdate rollback demo >/dev/null || fail "no rollback"

say "the supervisor's own upgrade: the same main process, another program"
pid=$(main_pid demo)
other_build_id "$build/bin/liveupdated" "$work/liveupdated"
inside sh -c "install -m 755 $work/liveupdated /usr/libexec/liveupdate/liveupdated.new &&
    mv /usr/libexec/liveupdate/liveupdated.new /usr/libexec/liveupdate/liveupdated"
vmm_pid=$(status_of demo vmm.pid)
install_vmm "/proc/$vmm_pid/exe"
inside systemctl reload liveupdate@demo
[[ $(main_pid demo) == "$pid" ]] || fail "the main process changed"
inside cmp "/proc/$pid/exe" "$work/liveupdated" || fail "the supervisor is the old one"
[[ $(status_of demo vmm.pid) == "$vmm_pid" ]] || fail "the VMM changed"
sound

say "stop asks the guest, then ends it; nothing is left"
inside systemctl stop liveupdate@demo
[[ $(state demo) == inactive ]] || fail "the unit is $(state demo)"
[[ -z $(inside pgrep liveupdate-vmm || true) ]] || fail "a VMM is left"
inside systemctl start liveupdate@demo
before=$(status_of demo vmm.pid)
say "restart is a reboot of the guest"
inside systemctl restart liveupdate@demo
[[ $(status_of demo vmm.pid) != "$before" ]] || fail "the guest was not started anew"
sound

say "a guest whose VMM died with its supervisor is lost, and not started anew in silence"
inside sh -c "kill -9 $(status_of demo vmm.pid) $(main_pid demo)"
is_lost() { [[ $(status_of demo state) == lost ]]; }
wait_for "the guest is not lost" is_lost
inside systemctl stop liveupdate@demo
say "passed"
