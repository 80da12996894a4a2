#!/usr/bin/env bash
# usage: workers.sh N [flags of worker.py ...]
#
# N workers in one terminal, in the folder where you are. Ctrl-C stops them gracefully, a second Ctrl-C at once.
. "$(dirname "$(readlink -f "$0")")/lib.sh"

case ${1:-} in
  '' | *[!0-9]* | 0*) wrong_use ;;
esac
count=$1
shift
ensure_python requirements.txt
cd "$caller_dir"

pids=()
stopping=
stop() {
  stopping=yes
  [ ${#pids[@]} = 0 ] || kill -TERM "${pids[@]}" 2>/dev/null || true
}
trap stop INT TERM HUP

set -m # a process group for each: the Ctrl-C of this terminal reaches them once, through the trap
for _ in $(seq "$count"); do
  [ -z "$stopping" ] || break
  "$python" "$root/worker.py" "$@" </dev/null &
  pids+=($!)
done
set +m

status=0
for pid in ${pids[@]+"${pids[@]}"}; do
  while :; do # a trapped signal ends `wait` early
    code=0
    wait "$pid" || code=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  [ "$code" = 0 ] || status=$code
done
exit "$status"
