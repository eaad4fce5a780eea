#!/bin/sh
# Makes an overlay for a lab: a tar archive that is unpacked at the root of a host's file system.
#
#   make-overlay.sh OUTPUT.tar.gz STRAIT [KERNEL [INITRD]]
#
# It has the static binary STRAIT as /usr/bin/strait, lab-check.sh as /usr/bin/strait-lab-check, and the
# guest's files as /opt/strait/kernel and /opt/strait/initrd.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: $0 OUTPUT.tar.gz STRAIT [KERNEL [INITRD]]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/usr/bin" "$root/opt/strait"
cp "$2" "$root/usr/bin/strait"
cp "$here/lab-check.sh" "$root/usr/bin/strait-lab-check"
[ $# -lt 3 ] || cp "$3" "$root/opt/strait/kernel"
[ $# -lt 4 ] || cp "$4" "$root/opt/strait/initrd"
chmod 755 "$root" "$root/usr/bin/strait" "$root/usr/bin/strait-lab-check"
# Below usr and opt alone: the entry of the root itself would change that of the host.
tar -C "$root" --owner=0 --group=0 -czf "$1" usr opt
