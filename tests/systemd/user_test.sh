#!/bin/bash
# A whole VM of an ordinary user of the group kvm under `systemctl --user`: start, an update by reload, a supervisor
# that is killed, stop.
. "$(dirname "$0")/common.sh"
vmm=/usr/libexec/liveupdate/liveupdate-vmm
uid=4711

compgen -G '/usr/lib/*/security/pam_systemd.so' >/dev/null || { echo "SKIPPED: libpam-systemd is not installed"; exit 77; }
[[ -e /usr/lib/systemd/user/dbus.socket ]] || { echo "SKIPPED: dbus-user-session is not installed"; exit 77; }
boot
inside sh -c 'getent group kvm >/dev/null || groupadd --system kvm'
inside useradd --uid "$uid" --create-home --groups kvm --shell /bin/bash alice
# A node of this machine's own: the group of the host's one is none of our business.
inside sh -c 'mknod -m 660 /dev/kvm.alice c $(stat -c "0x%t 0x%T" /dev/kvm); chgrp kvm /dev/kvm.alice
    mount --bind /dev/kvm.alice /dev/kvm'
inside systemctl start "user@$uid.service" || fail "there is no service manager of the user's"

user() {
    inside setpriv --reuid "$uid" --regid "$(inside id -g alice)" --init-groups \
        env HOME=/home/alice XDG_RUNTIME_DIR="/run/user/$uid" "$@"
}
vm_file mine
user mkdir -p /home/alice/.config/liveupdate/vms
inside cp /etc/liveupdate/vms/mine.toml /home/alice/.config/liveupdate/vms/
inside rm /etc/liveupdate/vms/mine.toml
field() { user systemctl --user show -P "$1" liveupdate@mine; }
pid_of_vmm() { user liveupdate status --json mine | python3 -c 'import json,sys; d=json.load(sys.stdin); print((d[0] if isinstance(d,list) else d)["vmm"]["pid"])'; }
sound() { contains "$(user "$build/bin/guest_watch" mine)" "errors=0 violations=0"; }
counter() { local line; line=$(user "$build/bin/guest_watch" mine); line=${line#counter=}; echo "${line%% *}"; }

say "start"
user systemctl --user start liveupdate@mine || { inside journalctl --no-pager -n 30; fail "no start"; }
pid=$(pid_of_vmm)
[[ $(inside stat -c %u "/proc/$pid") == "$uid" ]] || fail "the VMM is not the user's"
contains "$(inside cat "/proc/$pid/cgroup")" "user@$uid.service/liveupdate.slice/liveupdate-vmm-mine-$pid.scope"
sound

say "reload updates it"
before=$(counter)
inside sh -c "cp $build/bin/liveupdate-vmm-next $vmm.new && mv $vmm.new $vmm"
user systemctl --user reload liveupdate@mine || fail "the reload failed"
contains "$(field StatusText)" "running 0.1.0+next in VMM"
(( $(counter) > before )) || fail "the guest was restarted"
sound

say "the supervisor is killed"
pid=$(pid_of_vmm)
supervisor=$(field MainPID)
inside kill -9 "$supervisor"
has_successor() { [[ $(field ActiveState) == active && $(field MainPID) != "$supervisor" ]]; }
wait_for "no supervisor came after the one that was killed" has_successor
[[ $(pid_of_vmm) == "$pid" ]] || fail "another VMM runs"
sound

say "a window is a timer of the user's"
user sh -c 'printf "[rollout]\npolicy = \"window\"\nwindow = \"Sun 03:00\"\n" >~/.config/liveupdate/liveupdate.toml'
for turn in 1 2; do user liveupdate rollout || fail "rollout $turn"; done
user systemctl --user is-active --quiet liveupdate-window.timer || fail "there is no timer"

say "stop"
user systemctl --user stop liveupdate@mine
[[ -z $(inside pgrep liveupdate-vmm || true) ]] || fail "a VMM is left"
say "passed"
