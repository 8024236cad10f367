# fish completion of liveupdate(1). Commands and options are those that `liveupdate --help` prints.

# __liveupdate_folder VARIABLE ROOT XDG_VARIABLE HOME_FOLDER [BELOW]: as liveupdate(1) chooses it, "FILES".
function __liveupdate_folder
    if set -q $argv[1]; and test -n "$$argv[1]"
        echo $$argv[1]
    else if test (id -u) = 0
        echo $argv[2]
    else if set -q $argv[3]; and test -n "$$argv[3]"
        echo $$argv[3]/liveupdate$argv[5]
    else
        echo $HOME$argv[4]/liveupdate$argv[5]
    end
end

function __liveupdate_running
    for socket in (__liveupdate_folder LIVEUPDATE_RUNTIME_DIR /run/liveupdate XDG_RUNTIME_DIR /.none)/*/control.sock
        test -S $socket; and basename (dirname $socket)
    end
end

function __liveupdate_configured
    for file in (__liveupdate_folder LIVEUPDATE_CONFIG_DIR /etc/liveupdate/vms XDG_CONFIG_HOME /.config /vms)/*.toml
        basename $file .toml
    end
end

function __liveupdate_with_history
    for file in (__liveupdate_folder LIVEUPDATE_STATE_DIR /var/lib/liveupdate XDG_STATE_HOME /.local/state)/*/history.jsonl
        basename (dirname $file)
    end
end

function __liveupdate_templates
    for file in (__liveupdate_folder LIVEUPDATE_STATE_DIR /var/lib/liveupdate XDG_STATE_HOME /.local/state)/.templates/*/guest.save
        basename (dirname $file)
    end
end

function __liveupdate_commands
    liveupdate --help 2>/dev/null | sed -n '/^Subcommands:/,/^$/s/^  \([a-z][a-z-]*\)  *\(.*\)/\1\t\2/p'
end

function __liveupdate_options
    set -l command (commandline -opc)[2..-1]
    set -l command (string match -v -- '-*' $command)
    if test "$command[1]" = template
        set command $command[1..2]
    else
        set command $command[1]
    end
    liveupdate $command --help 2>/dev/null | sed -n 's/^  \(-[a-z],\)\{0,1\}\(--[a-z-]*\).*/\2/p'
end

complete -c liveupdate -f
complete -c liveupdate -n 'not __fish_seen_subcommand_from (__liveupdate_commands | cut -f 1)' -a '(__liveupdate_commands)'
complete -c liveupdate -n 'string match -q -- "-*" (commandline -ct)' -a '(__liveupdate_options)'
complete -c liveupdate -n '__fish_seen_subcommand_from now plan rollback abort reload stop console status save' -a '(__liveupdate_running)'
complete -c liveupdate -n '__fish_seen_subcommand_from start status' -a '(__liveupdate_configured)'
complete -c liveupdate -n '__fish_seen_subcommand_from start' -F
complete -c liveupdate -n '__fish_seen_subcommand_from save restore' -a '(__fish_complete_directories (commandline -ct))'
complete -c liveupdate -n '__fish_seen_subcommand_from template; and not __fish_seen_subcommand_from create list show rm' -a 'create list show rm'
complete -c liveupdate -n '__fish_seen_subcommand_from template; and __fish_seen_subcommand_from create' -a '(__liveupdate_running)'
complete -c liveupdate -n '__fish_seen_subcommand_from template; and __fish_seen_subcommand_from show rm' -a '(__liveupdate_templates)'
complete -c liveupdate -n '__fish_seen_subcommand_from clone' -a '(__liveupdate_templates)'
complete -c liveupdate -n '__fish_seen_subcommand_from history' -a '(__liveupdate_with_history)'
complete -c liveupdate -l way -x -n '__fish_seen_subcommand_from now plan rollback' -a 'x-ignore-shared cpr-transfer postcopy'
complete -c liveupdate -l qmp -r -F -n '__fish_seen_subcommand_from adopt'
complete -c liveupdate -l binary -r -F -n '__fish_seen_subcommand_from now plan'
