#!/bin/bash
# The .rpm packages: made of this build, installed, and a later VMM in a transaction of its own.
. "$(dirname "$0")/common.sh"
for tool in rpm rpmbuild; do
    command -v "$tool" >/dev/null || { echo "SKIPPED: $tool is not installed"; exit 77; }
done
version=$(sed -n 's/^Version: *//p' "$source/packaging/liveupdate.spec")
if command -v rpmlint >/dev/null; then
    if rpmlint "$source/packaging/liveupdate.spec" | grep ' E: '; then fail "rpmlint"; fi
fi

# rpm_of SPEC: its packages, of a tree that is built already.
rpm_of() {
    local tree=$work/rpm/BUILD/liveupdate-$version stage
    mkdir -p "$tree"
    cp -r "$source"/{LICENSE,README.md,CHANGELOG.md,docs} "$tree"
    ln -sfn "$build" "$tree/build"
    for stage in -bi -bb; do
        rpmbuild "$stage" --short-circuit --nodeps -D "_topdir $work/rpm" -D "debug_package %{nil}" "$1" \
            >"$work/rpmbuild.log" 2>&1 || { cat "$work/rpmbuild.log"; fail "rpmbuild $stage $1"; }
    done
}
# Their needs are told in names of distributions with rpm, so they are not looked at here.
install_rpm() { inside rpm -U --force-debian --nodeps --oldpackage "$@" 2>&1; }
packages() { echo "$work"/rpm/RPMS/*/"$1"-[0-9]*.rpm; }

# A VMM of another package, as a distribution's QEMU would be.
later_vmm() { # VERSION FILE
    cat >"$work/later.spec" <<SPEC
Name: liveupdate-vmm
Version: $1
Release: 1
Summary: A later VMM
License: Apache-2.0
%description
A later VMM.
%install
install -D $2 %{buildroot}/usr/libexec/liveupdate/liveupdate-vmm
%files
/usr/libexec/liveupdate/liveupdate-vmm
SPEC
    rpmbuild -bb -D "_topdir $work/later-$1" -D "debug_package %{nil}" "$work/later.spec" >"$work/rpmbuild.log" 2>&1 ||
        { cat "$work/rpmbuild.log"; fail "rpmbuild of a later VMM"; }
    cp "$work/later-$1"/RPMS/*/*.rpm "$work/vmm-$1.rpm"
}

start_machine
rpm_of "$source/packaging/liveupdate.spec"

say "first installation"
# shellcheck disable=SC2046 # one path each
said=$(install_rpm $(packages liveupdate) $(packages liveupdate-vmm)) || fail "rpm: $said"
inside systemctl is-enabled --quiet liveupdate.target || fail "the target is not enabled"
inside getent group liveupdate >/dev/null || fail "there is no group liveupdate"
vm_file demo
inside systemctl start liveupdate@demo
contains "$(guest demo)" "errors=0 violations=0"
before=$(guest demo)

say "a later VMM: the file trigger updates the guest"
later_vmm 0.2 "$build/bin/liveupdate-vmm-next"
said=$(install_rpm "$work/vmm-0.2.rpm") || fail "rpm: $said"
contains "$said" "demo: updated 0.1.0 -> 0.1.0+next"
[[ $(status_of demo vmm.version) == 0.1.0+next ]] || fail "not updated"
contains "$(guest demo)" "errors=0 violations=0"
count=${before#counter=}
after=$(guest demo)
after=${after#counter=}
(( ${after%% *} > ${count%% *} )) || fail "the guest was restarted"

say "a VMM that cannot take the guest fails no transaction"
later_vmm 0.3 "$build/bin/counter-vmm"
pid=$(status_of demo vmm.pid)
said=$(install_rpm "$work/vmm-0.3.rpm") || fail "rpm: $said"
contains "$said" "demo: refused"
contains "$said" "not every guest was updated"
[[ $(inside rpm -q liveupdate-vmm) == liveupdate-vmm-0.3-1* ]] || fail "it is not installed"
[[ $(status_of demo vmm.pid) == "$pid" && $(status_of demo outdated) == True ]] || fail "the guest was touched"

say "the supervisor's own package: %posttrans, and the VMM of the same transaction"
said=$(install_rpm --replacepkgs --replacefiles "$(packages liveupdate)" "$(packages liveupdate-vmm)") || fail "rpm: $said"
contains "$said" "demo: updated 0.1.0+next -> 0.1.0"
contains "$(guest demo)" "errors=0 violations=0"

say "removal leaves the guest alone"
pid=$(status_of demo vmm.pid)
inside rpm -e --force-debian liveupdate liveupdate-vmm 2>"$work/erase.log" || { cat "$work/erase.log"; fail "rpm -e"; }
inside kill -0 "$pid" || fail "the guest is gone"
say "passed"
