#!/bin/sh
# Checks strait on a host, for labs: what the host has, then each device of DEVICES in turn, by itself and
# in a guest. Each step is a test case, by LAVA's lava-test-case where that is there (LAVA, tuxrun,
# KernelCI), and else a line on standard output: `NAME: pass`, `fail` or `skip`.
#
#   DEVICES   devices to be assigned, by sysfs' names (2c0a0000.dma 0000:01:00.0); none unless set
#   KERNEL    a guest's kernel; no guest is booted without one
#   INITRD    its initrd
#   CMDLINE   added to its command line
#   UNTIL     what it prints when it is up [login:]
#   TIMEOUT   seconds that it may take for that [120]
#   LOGS      a directory for consoles, strait's own lines, JUnit reports [.]
#   DRIVER_SAYS  what else must be on a guest's console that has a device, such as its driver's greeting
#
# The exit status is 1 if a step failed, else 0.
set -u
# Where make-overlay.sh puts strait, which hosts of a few programs don't look in.
PATH=$PATH:/usr/local/bin:/usr/bin
logs=${LOGS:-.}
failed=0

# report NAME RESULT
report() {
    [ "$2" != fail ] || failed=1
    if command -v lava-test-case >/dev/null; then
        lava-test-case "$1" --result "$2"
    else
        echo "$1: $2"
    fi
}

# step NAME COMMAND…: a test case that passes if the command succeeds. What it says is shown.
step() {
    name=$1
    shift
    if "$@"; then
        report "$name" pass
    else
        report "$name" fail
        return 1
    fi
}

# guest NAME [OPTION]…: boots a guest with these options; its console is shown where it fails.
guest() {
    name=$1
    shift
    [ -z "${INITRD:-}" ] || set -- --initrd "$INITRD" "$@"
    strait run --kernel "$KERNEL" --cmdline "${CMDLINE:-}" --timeout "${TIMEOUT:-120}" \
        --until "${UNTIL:-login:}" --junit "$logs/$name.xml" "$@" \
        </dev/null >"$logs/$name.console" 2>"$logs/$name.log"
    status=$?
    if [ $status -eq 0 ] && [ "$name" != boot ] && [ -n "${DRIVER_SAYS:-}" ] &&
        ! grep -qF -- "$DRIVER_SAYS" "$logs/$name.console"; then
        echo "$name: the guest didn't say: $DRIVER_SAYS"
        status=1
    fi
    if [ $status -ne 0 ]; then
        echo "$name: strait ended with status $status"
        tail -n 20 "$logs/$name.console" "$logs/$name.log"
    fi
    return $status
}

# device NAME: gives it to VFIO, tests it, has a guest use it, gives it back.
device() {
    if ! step "bind-$1" strait device bind "$1"; then
        report "test-$1" skip
        report "guest-$1" skip
        return
    fi
    step "test-$1" strait device test "$1"
    case $1 in
    *:*:*.*) option=--vfio-pci ;;
    *) option=--vfio-platform ;;
    esac
    if [ -n "${KERNEL:-}" ]; then
        step "guest-$1" guest "guest-$1" $option "$1"
    else
        report "guest-$1" skip
    fi
    step "unbind-$1" strait device unbind "$1"
}

step version strait --version || exit 1
if [ -n "${DEVICES:-}" ]; then
    step host strait check
else
    # Without a device that can be assigned it has status 1, and nobody asked for one.
    strait check
    report host "$([ -c /dev/kvm ] && echo pass || echo fail)"
fi
if [ -n "${KERNEL:-}" ]; then
    step boot guest boot
else
    report boot skip
fi
for name in ${DEVICES:-}; do
    device "$name"
done
exit $failed
