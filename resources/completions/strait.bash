# Made by `cargo model manual` from `strait --help`.
_strait() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
    COMPREPLY=()
    case $before in
    --kernel) COMPREPLY=($(compgen -f -- "$word")); return ;;
    --firmware) COMPREPLY=($(compgen -f -- "$word")); return ;;
    --initrd) COMPREPLY=($(compgen -f -- "$word")); return ;;
    --cmdline) return ;;
    --cpus) return ;;
    --memory) return ;;
    --cpu-features) return ;;
    --gic) COMPREPLY=($(compgen -W 'auto 2 3' -- "$word")); return ;;
    --serial) COMPREPLY=($(compgen -W '8250 pl011' -- "$word")); return ;;
    --console) COMPREPLY=($(compgen -W 'stdio pty unix: file: off' -- "$word")); return ;;
    --virtio-console) COMPREPLY=($(compgen -W 'stdio pty unix: file: off' -- "$word")); return ;;
    --vfio-platform) COMPREPLY=($(compgen -W "$(strait device list 2>/dev/null | awk 'NR > 1 { print $1 }')" -- "$word")); return ;;
    --vfio-pci) COMPREPLY=($(compgen -W "$(strait device list 2>/dev/null | awk '$2 == "pci" { print $1 }')" -- "$word")); return ;;
    --vfio-user) COMPREPLY=($(compgen -f -- "$word")); return ;;
    --block) COMPREPLY=($(compgen -f -- "$word")); return ;;
    --net) return ;;
    --vsock) return ;;
    --share) return ;;
    --vhost-user) return ;;
    --balloon) return ;;
    --iommu) COMPREPLY=($(compgen -W 'auto iommufd container' -- "$word")); return ;;
    --iommufd-fd) return ;;
    --dtb-overlay) COMPREPLY=($(compgen -f -- "$word")); return ;;
    --timeout) return ;;
    --grace) return ;;
    --control) return ;;
    --register) return ;;
    --on-reset) COMPREPLY=($(compgen -W 'restart exit' -- "$word")); return ;;
    --until) return ;;
    --fail-on) return ;;
    --log) COMPREPLY=($(compgen -f -- "$word")); return ;;
    --config) COMPREPLY=($(compgen -f -- "$word")); return ;;
    --dump-dtb) COMPREPLY=($(compgen -f -- "$word")); return ;;
    --stats) COMPREPLY=($(compgen -f -- "$word")); return ;;
    --junit) COMPREPLY=($(compgen -f -- "$word")); return ;;
    --trace) COMPREPLY=($(compgen -W "$(strait device list 2>/dev/null | awk 'NR > 1 { print $1 }')" -- "$word")); return ;;
    --gdb) return ;;
    --sandbox) COMPREPLY=($(compgen -W 'on log off' -- "$word")); return ;;
    --user) return ;;
    --log-level) return ;;
    --owner) return ;;
    --report) COMPREPLY=($(compgen -f -- "$word")); return ;;
    --tree) return ;;
    --for) return ;;
    esac
    case ${COMP_WORDS[1]} in
    run) COMPREPLY=($(compgen -W '--kernel --firmware --initrd --cmdline --no-default-cmdline --cpus --memory --cpu-features --gic --serial --console --virtio-console --vfio-platform --vfio-pci --vfio-user --block --net --net --vsock --share --vhost-user --balloon --virtio-access-platform --iommu --iommufd-fd --bind --force --dtb-overlay --timeout --grace --control --register --on-reset --until --fail-on --log --config --print-config --dry-run --json --dump-dtb --stats --junit --trace --gdb --sandbox --user --log-level --help' -- "$word")) ;;
    device) COMPREPLY=($(compgen -W 'list show bind unbind test kconfig export --cdi --group --owner --force --iommu --report --tree --for --json --help' -- "$word")) ;;
    check) COMPREPLY=($(compgen -W '--memory --json --help' -- "$word")) ;;
    *) COMPREPLY=($(compgen -W 'run device check --help --version' -- "$word")) ;;
    esac
}
complete -o filenames -F _strait strait
