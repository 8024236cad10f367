#!/bin/bash
# Completions, as installed: each shell offers the commands and options that the help texts have, and running VMs.
# Usage: completions_test.sh BUILD_FOLDER SOURCE_FOLDER
set -euo pipefail

build=$1 source=$2
work=$(mktemp -d "${TMPDIR:-/tmp}/liveupdate-completions-XXXXXX")
trap 'rm -rf "$work"' EXIT
fail() { printf 'FAILED: %s\n' "$*"; exit 1; }

DESTDIR=$work/root cmake --install "$build" --component liveupdate >"$work/install.log"
installed() { find "$work/root" -path "*/$1"; }
for page in man1/liveupdate.1 man5/liveupdate.toml.5 man5/liveupdate-vm.toml.5 man8/liveupdated.8; do
    [[ -n $(installed "$page") ]] || fail "$page is not installed"
done

export PATH=$build/bin:$PATH LIVEUPDATE_RUNTIME_DIR=$work/run LIVEUPDATE_CONFIG_DIR=$work/vms LIVEUPDATE_STATE_DIR=$work/state
mkdir -p "$work"/run/{web1,db.old} "$work/vms" "$work/state/gone"
python3 -c 'import socket,sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$work/run/web1/control.sock"
mkdir -p "$work/state/.templates/base"
touch "$work/state/.templates/base/guest.save" "$work/vms/stopped.toml" "$work/state/gone/history.jsonl"

commands=$(liveupdate --help | sed -n '/^Subcommands:/,/^$/s/^  \([a-z][a-z-]*\) .*/\1/p' | sort)
options=$(liveupdate now --help | grep -oE '^  (-[a-z],)?--[a-z-]+' | grep -oE -- '--[a-z-]+' | sort)
(( $(wc -l <<<"$commands") >= 10 && $(wc -l <<<"$options") >= 5 )) || fail "the help text is not understood"

# check SHELL: `offers WORD...` prints what the shell offers for the last word.
check() {
    local command
    [[ $(offers liveupdate '') == "$commands" ]] || fail "$1: commands: $(offers liveupdate '')"
    [[ $(offers liveupdate now --) == "$options" ]] || fail "$1: options: $(offers liveupdate now --)"
    [[ $(offers liveupdate rollb) == rollback ]] || fail "$1: rollb: $(offers liveupdate rollb)"
    for command in now plan rollback abort reload stop console; do
        [[ $(offers liveupdate "$command" '') == web1 ]] || fail "$1: $command: $(offers liveupdate "$command" '')"
    done
    [[ $(offers liveupdate now --way post) == postcopy ]] || fail "$1: --way: $(offers liveupdate now --way post)"
    [[ $(offers liveupdate save we) == web1 ]] || fail "$1: save: $(offers liveupdate save we)"
    [[ $(offers liveupdate restore fold | tr -d /) == folder1 ]] || fail "$1: restore: $(offers liveupdate restore fold)"
    [[ $(offers liveupdate template '') == $'create\nlist\nrm\nshow' ]] || fail "$1: template: $(offers liveupdate template '')"
    [[ $(offers liveupdate template create '') == web1 ]] || fail "$1: create: $(offers liveupdate template create '')"
    [[ $(offers liveupdate template show '') == base ]] || fail "$1: show: $(offers liveupdate template show '')"
    [[ $(offers liveupdate template show --veri) == --verify ]] || fail "$1: --verify: $(offers liveupdate template show --veri)"
    [[ $(offers liveupdate clone '') == base ]] || fail "$1: clone: $(offers liveupdate clone '')"
    [[ $(offers liveupdate now --all web) == web1 ]] || fail "$1: after an option"
    [[ $(offers liveupdate start stop) == stopped ]] || fail "$1: start: $(offers liveupdate start stop)"
    [[ $(offers liveupdate history '') == gone ]] || fail "$1: history: $(offers liveupdate history '')"
    echo "$1 completes"
}

bash_file=$(installed bash-completion/completions/liveupdate)
mkdir "$work/vms/folder1"
cd "$work/vms" # where no file's name gets among the others
offers() {
    bash --norc -c '. "$1"; shift; COMP_WORDS=("$@") COMP_CWORD=$(( $# - 1 ))
        _liveupdate 2>/dev/null; printf "%s\n" "${COMPREPLY[@]}"' - "$bash_file" "$@" | sed 's/\.toml$//' | sort -u
}
bash --norc -c '. "$1"; complete -p liveupdate' - "$bash_file" >/dev/null || fail "bash: not registered"
check bash

if command -v fish >/dev/null; then
    fish_file=$(installed fish/vendor_completions.d/liveupdate.fish)
    offers() { HOME=$work fish --no-config -c "source $fish_file; complete -C '$*'" | cut -f 1 | sed 's/\.toml$//' | sort -u; }
    check fish
else
    echo "SKIPPED: fish is not installed"
fi

if command -v zsh >/dev/null; then
    # A real line editor in a pseudo terminal; Tab, then everything that it shows.
    cat >"$work/zsh" <<'ZSH'
zmodload zsh/zpty
zpty line zsh -f -i
say() { zpty -w line "$1"; }
say "PS1=; PROMPT_EOL_MARK=; fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -D; zstyle ':completion:*' verbose no; LISTMAX=0; stty -echo cols 60; bindkey -e; bindkey '^I' expand-or-complete; echo READY"
all=
read_until() { local i part; for (( i = 0; i < 1500; i++ )); do if zpty -rt line part; then all+=$part; [[ $all == *$~1* ]] && return 0; else sleep 0.02; fi; done; return 1; }
read_until $'*\nREADY*' || exit 1
shift
for pair in "$@"; do
    all=
    zpty -wn line "${pair%%=*}"$'\t'
    sleep 0.2
    zpty -wn line $'\x01echo "[\x05]"\n'
    read_until "*\[${pair#*=}*\]*" || { print -r -- "zsh: ${pair%%=*} does not become ${pair#*=}: $all"; exit 1; }
done
zpty -d line
ZSH
    zsh -n "$(installed 'zsh/*/_liveupdate')"
    zsh -f "$work/zsh" "$(dirname "$(installed 'zsh/*/_liveupdate')")" "liveupdate rollb=liveupdate rollback" \
        "liveupdate now --can=liveupdate now --canary" "liveupdate now --way post=liveupdate now --way postcopy" "liveupdate stop we=liveupdate stop web1" \
        "liveupdate start stopp=liveupdate start stopped" "liveupdate history g=liveupdate history gone" ||
        fail "zsh"
    echo "zsh completes"
else
    echo "SKIPPED: zsh is not installed"
fi
