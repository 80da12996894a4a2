#!/usr/bin/env bash
# usage: demo.sh [WORKERS]
#
# The whole of it, from a fresh clone: environment, broker, workers (3), the demo batch, who did what.
# Leaves nothing running that it started. A second Ctrl-C ends the workers' running tasks at once.
. "$(dirname "$(readlink -f "$0")")/lib.sh"

workers=${1:-3}
case $#,$workers in
  *[!0-9,]* | *, | *,0* | [2-9]*) wrong_use ;;
esac
unset PYTHONPATH
ensure_python requirements.txt
know_broker

# queues and settings of its own, so that it neither takes nor leaves tasks where somebody works
export TASK_QUEUE=demo.$$ QUEUE_TYPE=classic PREFETCH_COUNT=1 CONCURRENCY=1 LOG_FORMAT=text
work=$(mktemp -d)
pids=()

stop_workers() {
  [ ${#pids[@]} = 0 ] || kill -TERM "${pids[@]}" 2>/dev/null || true
}
finish() {
  trap stop_workers INT TERM HUP
  stop_workers
  while [ -n "$(jobs -pr)" ]; do wait || true; done # a trapped signal ends `wait` early
  trap '' INT TERM HUP # also for what is called here: nothing of it may be left half done
  rm -rf "$work"
  "$python" scripts/drop_queues.py >/dev/null 2>&1 || true
  return_broker
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

borrow_broker

say
say "$workers workers wait for tasks:"
set -m
for number in $(seq "$workers"); do
  "$python" worker.py --id "Worker-$number" </dev/null > >(exec 7>&- && exec tee "$work/$number") 2>&1 7>&- &
  pids+=($!)
done
set +m
# in whatever encoding the workers write, these words are ASCII
count() { cat "$work"/[0-9]* 2>/dev/null | LC_ALL=C grep -c "$1" || true; }
wait_for() { # wait_for COUNT WORDS: until so many lines of the workers hold them
  for _ in $(seq 1200); do
    [ "$(count "$2")" -ge "$1" ] && return
    kill -0 "${pids[0]}" 2>/dev/null || break
    sleep 0.1
  done
  die 1 "the workers did not get there: $2"
}
wait_for "$workers" "Waiting for tasks"

say
say "Eight tasks are sent:"
"$python" sender.py | tee "$work/sent"
say
wait_for 8 "Task completed"

stop_workers
wait
pids=()
say
say "Who did what:"
for number in $(seq "$workers"); do
  # how difficult a task is, stands in the sender's line: Sent: NAME (difficulty: N)
  LC_ALL=C awk -v worker="Worker-$number" '
    FNR == NR { if (match($0, /^Sent: .* \(difficulty: [0-9]+/)) {
      split(substr($0, 7, RLENGTH - 6), parts, / \(difficulty: /)
      difficulty[parts[1]] = parts[2]
    } next }
    /Task completed/ { tasks++ }
    /Received task: / {
      sub(/.*Received task: /, "")
      for (name in difficulty) if (index($0 " ", name " ") == 1) total += difficulty[name]
    }
    END { printf "  %s: %d tasks, of difficulty %d in all\n", worker, tasks, total }
  ' "$work/sent" "$work/$number"
done
say "Each task went to one worker; whoever was free took the next."
