#!/bin/sh
# Boots a guest under strait and says how it ended: a boot test for CI.
#
#   boot-test.sh KERNEL INITRD [OPTION OF strait run]…
#
# TIMEOUT (seconds, 120 unless set) ends what hangs. EXPECT, if set, must be in the console's output.
# The console goes to console.log, strait's own lines to strait.log, both in LOGS (here unless set).
set -u
if [ $# -lt 2 ]; then
    echo "usage: $0 KERNEL INITRD [OPTION]..." >&2
    exit 2
fi
kernel=$1 initrd=$2
shift 2
logs=${LOGS:-.}

strait run --kernel "$kernel" --initrd "$initrd" --timeout "${TIMEOUT:-120}" "$@" \
    </dev/null >"$logs/console.log" 2>"$logs/strait.log"
status=$?

# What --until or --fail-on came to, as strait's own lines say it behind "the guest".
found=$(sed -n 's/^strait: the guest\(.* (--\(until\|fail-on\)).*\)/\1/p' "$logs/strait.log" | tail -n 1)

case $status in
0) result=${found:-" powered off"} ;;
3) result=" asked for a reset" ;;
4) result=" crashed" ;;
5) result=$found ;;
124) result=" was still running after ${TIMEOUT:-120} s" ;;
129 | 1[3-9]? | 2??) result=" was ended with strait, by signal $((status - 128))" ;;
*) result=" did not run: $(tail -n 3 "$logs/strait.log")" ;;
esac
if [ $status -eq 0 ] && [ -n "${EXPECT:-}" ] && ! grep -qF -- "$EXPECT" "$logs/console.log"; then
    result="$result without saying: $EXPECT"
    status=1
fi
if [ $status -ne 0 ]; then
    echo "FAIL: the guest$result"
    tail -n 20 "$logs/console.log"
    exit $status
fi
echo "PASS: the guest$result"
