#!/bin/bash
# Many guests at once: LIVEUPDATE_TEST_GUESTS (20) are reloaded by one `systemctl reload`, four at a time.
. "$(dirname "$0")/common.sh"
guests=${LIVEUPDATE_TEST_GUESTS:-20}
vmm=/usr/libexec/liveupdate/liveupdate-vmm

free_kib() { awk '/^MemAvailable/ { print $2 }' /proc/meminfo; }

boot
names=()
for (( i = 1; i <= guests; i++ )); do vm_file "g$i"; names+=("g$i"); done
inside systemctl start "${names[@]/#/liveupdate@}"
inside sh -c "cp $build/bin/liveupdate-vmm-next $vmm.new && mv $vmm.new $vmm"
for name in "${names[@]}"; do guest "$name" >/dev/null; done

before=$(free_kib) least=$(free_kib)
most=0
began=$(date +%s%N)
inside systemctl reload 'liveupdate@*.service' & reload=$!
while kill -0 "$reload" 2>/dev/null; do
    now=$(free_kib)
    if (( now < least )); then least=$now; fi
    # VMMs beyond one for each guest are destinations.
    both=$(( $(inside pgrep -c liveupdate-vmm) - guests ))
    if (( both > most )); then most=$both; fi
    sleep 0.05
done
wait "$reload" || { inside sh -c 'for name in $(ls /run/liveupdate); do liveupdate history "$name"; done'; fail "the reload failed"; }
took=$(( ($(date +%s%N) - began) / 1000000 ))
for name in "${names[@]}"; do
    [[ $(status_of "$name" vmm.version) == 0.1.0+next ]] || fail "$name was not updated"
    contains "$(guest "$name")" "errors=0 violations=0"
done
(( most <= 4 )) || fail "$most guests were updated at once"
worst=$(inside liveupdate list --json | python3 -c "import json,sys
print(max(v['last_update']['blackout_us'] for v in json.load(sys.stdin)))")
say "$guests guests, at most $most at once, in $took ms; $(( (before - least) / 1024 )) MiB more in use at most; longest blackout $worst us"
say "passed"
