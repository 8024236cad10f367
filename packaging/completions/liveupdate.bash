# bash completion of liveupdate(1). Commands and options are those that `liveupdate --help` prints.

# _liveupdate_folder VARIABLE ROOT XDG_VARIABLE HOME_FOLDER: as liveupdate(1) chooses it, "FILES".
_liveupdate_folder() {
    if [[ -n ${!1:-} ]]; then printf '%s' "${!1}"
    elif (( EUID == 0 )); then printf '%s' "$2"
    else printf '%s' "${!3:-${HOME:-}$4}/liveupdate"
    fi
}

_liveupdate_running() {
    local folder socket
    folder=$(_liveupdate_folder LIVEUPDATE_RUNTIME_DIR /run/liveupdate XDG_RUNTIME_DIR /.none)
    for socket in "$folder"/*/control.sock; do
        [[ -S $socket ]] || continue
        socket=${socket%/control.sock}
        printf '%s\n' "${socket##*/}"
    done
}

_liveupdate_configured() {
    local folder file
    folder=$(_liveupdate_folder LIVEUPDATE_CONFIG_DIR /etc/liveupdate/vms XDG_CONFIG_HOME /.config)
    if [[ -z ${LIVEUPDATE_CONFIG_DIR:-} ]] && (( EUID != 0 )); then folder+=/vms; fi
    for file in "$folder"/*.toml; do
        [[ -e $file ]] || continue
        file=${file##*/}
        printf '%s\n' "${file%.toml}"
    done
}

_liveupdate_with_history() {
    local folder file
    folder=$(_liveupdate_folder LIVEUPDATE_STATE_DIR /var/lib/liveupdate XDG_STATE_HOME /.local/state)
    for file in "$folder"/*/history.jsonl; do
        [[ -e $file ]] || continue
        file=${file%/history.jsonl}
        printf '%s\n' "${file##*/}"
    done
}

_liveupdate_templates() {
    local folder entry
    folder=$(_liveupdate_folder LIVEUPDATE_STATE_DIR /var/lib/liveupdate XDG_STATE_HOME /.local/state)
    for entry in "$folder"/.templates/*/guest.save; do
        [[ -e $entry ]] || continue
        entry=${entry%/guest.save}
        printf '%s\n' "${entry##*/}"
    done
}

# The commands that the help of `words` lists.
_liveupdate_commands() {
    "$@" --help 2>/dev/null | sed -n '/^Subcommands:/,/^$/s/^  \([a-z][a-z-]*\) .*/\1/p'
}

# The folders that `current` begins.
_liveupdate_folders() {
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -d -- "$current")
}

_liveupdate() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} program=${COMP_WORDS[0]}
    local command='' inner='' word words=''
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [[ $word == -* ]]; then continue
        elif [[ -z $command ]]; then command=$word
        elif [[ $command == template && -z $inner ]]; then inner=$word
        fi
    done
    case $previous in
    --way) mapfile -t COMPREPLY < <(compgen -W 'x-ignore-shared cpr-transfer postcopy' -- "$current"); return ;;
    --binary | --qmp) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
    --timeout | --ram-timeout | --max-parallel | --canary | --limit | -n | --count | --tap | --name) return ;;
    esac
    if [[ $current == -* ]]; then
        words=$("$program" ${command:+"$command"} ${inner:+"$inner"} --help 2>/dev/null | sed -n 's/^  \(-[a-z],\)\{0,1\}\(--[a-z-]*\).*/\2/p')
    else
        case $command in
        '') words=$(_liveupdate_commands "$program") ;;
        template)
            case $inner in
            '') words=$(_liveupdate_commands "$program" template) ;;
            create) words=$(_liveupdate_running) ;;
            show | rm) words=$(_liveupdate_templates) ;;
            esac
            ;;
        clone) if [[ $previous == clone ]]; then words=$(_liveupdate_templates); fi ;;
        start)
            words=$(_liveupdate_configured)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -X '!*.toml' -- "$current"; compgen -d -- "$current")
            ;;
        history) words=$(_liveupdate_with_history) ;;
        status) words=$(_liveupdate_running; _liveupdate_configured) ;;
        now | plan | rollback | abort | reload | stop | console | save)
            words=$(_liveupdate_running)
            if [[ $command == save && $previous != save && $previous != -* ]]; then words='' _liveupdate_folders; fi
            ;;
        restore) _liveupdate_folders ;;
        esac
    fi
    mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -W "$words" -- "$current" | sort -u)
}
complete -F _liveupdate liveupdate
