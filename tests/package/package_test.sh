#!/bin/sh
# Installs libhandoff into an empty prefix, builds handoff/example against it as somebody else's project would,
# and runs what came out.
# Usage: package_test.sh CMAKE BUILD_DIR SOURCE_DIR EXPECTED_VERSION [CXX_FLAGS]
set -eu

cmake=$1 build=$2 source=$3 version=$4 flags=${5:-}
work=$(mktemp -d "${TMPDIR:-/tmp}/liveupdate-package-XXXXXX")
trap 'rm -rf "$work"' EXIT

"$cmake" --install "$build" --component handoff --prefix "$work/prefix" >"$work/install.log"

# A copy, so that nothing of the repository can be found beside it.
cp -r "$source/handoff/example" "$work/example"
"$cmake" -S "$work/example" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" \
    -DCMAKE_CXX_FLAGS="$flags" -DCMAKE_EXPORT_COMPILE_COMMANDS=ON >"$work/configure.log"
"$cmake" --build "$work/build" -j2

if grep -E -- '-Wconversion|-Wshadow|-Wpedantic' "$work/build/compile_commands.json"; then
    echo "our warning flags leak into the package's users" >&2
    exit 1
fi
if grep -rF -e "$source" -e "$build" "$work/prefix/lib/cmake" "$work/prefix/lib"/*/cmake 2>/dev/null; then
    echo "the package names the folders it was built in" >&2
    exit 1
fi

said=$("$work/build/counter-vmm" --version)
echo "$said"
case $said in
"counter-vmm $version
build-id "????????????????????????????????????????) ;;
*)
    echo "counter-vmm --version should say 'counter-vmm $version' and a build-id" >&2
    exit 1
    ;;
esac
