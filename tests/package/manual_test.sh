#!/bin/bash
# The manual pages are well formed, and tell every command, option and key that the programs know, and no other.
# Usage: manual_test.sh BUILD_FOLDER SOURCE_FOLDER
set -euo pipefail

build=$1 source=$2
pages=$source/docs/man
bad=0
wrong() { printf 'WRONG: %s\n' "$*"; bad=1; }

# Bold words that begin the entries of a list: `.It Fl n , -limit Ar count` gives "n" and "-limit".
entries() { # FILE MACRO
    awk -v macro="$2" '$1 == ".It" && $2 == macro { for (i = 3; i <= NF && $i !~ /^(Ar|No|Op)$/; i++) if ($i != ",") print $i }' "$1"
}
# What a help text offers, without the leading "-".
options() { sed -n 's/^  -\([a-z]\),-\(-[a-z-]*\).*/\1\n\2/p; s/^  -\(-[a-z-]*\).*/\1/p'; }
# What a help text lists.
subcommands() { sed -n '/^Subcommands:/,/^$/s/^  \([a-z][a-z-]*\) .*/\1/p'; }
# Entries of the chapters "All commands" and of those whose title has the command in it.
option_entries_of() { # COMMAND
    awk -v command="$1" '$1 == ".Ss" { mine = /All commands/ || $0 ~ "[ ,]" command "($|[ ,])" } mine' \
        "$pages/liveupdate.1" >"$work/chapters"
    entries "$work/chapters" Fl
}
same() { # WHAT KNOWN TOLD: two lists of words
    diff <(sort -u <<<"$2") <(sort -u <<<"$3") >"$work/diff" ||
        { wrong "$1: the program's (<) and the page's (>) differ:"; cat "$work/diff"; }
}
work=$(mktemp -d "${TMPDIR:-/tmp}/liveupdate-manual-XXXXXX")
trap 'rm -rf "$work"' EXIT

linter=
for page in "$pages"/*.[158]; do
    if command -v mandoc >/dev/null; then
        linter=mandoc
        mandoc -T lint -W warning "$page" || wrong "$page, says mandoc"
    fi
    if command -v man >/dev/null; then
        linter=man
        said=$(LC_ALL=C.UTF-8 man --warnings -E UTF-8 -l "$page" 2>&1 >/dev/null)
        [[ -z $said ]] || wrong "$page, says man: $said"
    fi
done
[[ -n $linter ]] || echo "SKIPPED: neither mandoc nor man is installed, so the pages' form is not looked at"

help=$("$build/bin/liveupdate" --help)
commands=$(subcommands <<<"$help")
(( $(wc -l <<<"$commands") >= 10 )) || wrong "the help text is not understood"
same "commands" "$commands" "$(entries "$pages/liveupdate.1" Cm)"
same "commands of the synopsis" "$commands" "$(sed -n '/^.Sh SYNOPSIS/,/^.Sh DESCRIPTION/s/^\.Cm //p' "$pages/liveupdate.1")"
for option in $(options <<<"$help"); do
    entries "$pages/liveupdate.1" Fl | grep -qxe "$option" || wrong "liveupdate.1 does not tell -$option"
done
all=$(options <<<"$help")
# Each command, and each command of a command, as its words.
paths=()
for command in $commands; do
    paths+=("$command")
    for inner in $("$build/bin/liveupdate" "$command" --help | subcommands); do
        paths+=("$command $inner")
        grep -q "^\.It Cm $command No $inner" "$pages/liveupdate.1" || wrong "liveupdate.1 does not tell $command $inner"
    done
done
for command in "${paths[@]}"; do
    known=$("$build/bin/liveupdate" $command --help | options)
    all+=$'\n'$known
    for option in $known; do
        option_entries_of "$command" | grep -qxe "$option" || wrong "liveupdate.1 does not tell -$option of $command"
    done
done
same "options of liveupdate" "$all" "$(entries "$pages/liveupdate.1" Fl)"
same "options of liveupdated" "$("$build/bin/liveupdated" --help | options)" "$(entries "$pages/liveupdated.8" Fl)"

# The readers ask for each key by name: Section::string("key", ...) and its sisters.
keys() {
    grep -ohE '\b(string|strings|path|size|integer|choice|boolean|duration)\("[a-z_]+"' "$@" | sed 's/.*"\(.*\)"/\1/'
}
tables() { grep -ohE '\btop\.tables?\("[a-z_]+"' "$@" | sed 's/.*"\(.*\)"/\1/'; }
told_tables() { sed -n 's/^\.Ss The tables\{0,1\} \[*\([a-z]*\)\]*$/\1/p' "$1"; }
vm_readers=$(grep -lE 'VmConfig& config' "$source"/supervisor/*.cpp)
vm_keys=$(keys $vm_readers)
(( $(wc -l <<<"$vm_keys") >= 25 )) || wrong "the reader of VM files is not understood"
same "keys of VM files" "$vm_keys" "$(entries "$pages/liveupdate-vm.toml.5" Li)"
same "tables of VM files" "$(tables $vm_readers)" "$(told_tables "$pages/liveupdate-vm.toml.5")"
for key in $vm_keys; do
    grep -q "^| \`$key\` |" "$source/docs/vm-file.md" || wrong "docs/vm-file.md does not tell $key"
done
policy=$source/supervisor/rollout_policy.cpp
same "keys of the policy" "$(keys "$policy")" "$(entries "$pages/liveupdate.toml.5" Li)"
same "tables of the policy" "$(tables "$policy")" "$(told_tables "$pages/liveupdate.toml.5")"
for id in $(sed -n 's/^-- //p' "$source/systemd/liveupdate.catalog"); do
    grep -q "$id" "$pages/liveupdated.8" || wrong "liveupdated.8 does not tell the message id $id"
done

(( bad == 0 )) || exit 1
echo "$(wc -l <<<"$commands") commands, $(sort -u <<<"$all" | wc -l) options, $(sort -u <<<"$vm_keys" | wc -l) keys of VM files"
