#!/usr/bin/env bash
# The whole of it, from a fresh clone:  demo.sh [WORKERS]
# Environment, broker, workers (3), the demo batch, who did what. Leaves nothing running that it started.
. "$(dirname "$0")/lib.sh"

workers=${1:-3}
case $workers in
  *[!0-9]* | '' | 0*) die 2 "usage: demo.sh [WORKERS], WORKERS from 1" ;;
esac
ensure_python requirements.txt

# queues and settings of its own, so that it neither takes nor leaves tasks where somebody works
export TASK_QUEUE=demo.$$ QUEUE_TYPE=classic PREFETCH_COUNT=1 CONCURRENCY=1 LOG_FORMAT=text
work=$(mktemp -d)
pids=()
started_broker=

stop_workers() {
  [ ${#pids[@]} = 0 ] || kill -TERM "${pids[@]}" 2>/dev/null || true
}
finish() {
  trap stop_workers INT TERM HUP # a second Ctrl-C stops them at once
  stop_workers
  wait
  rm -rf "$work"
  "$python" scripts/drop_queues.py 2>/dev/null || true
  [ -z "$started_broker" ] || scripts/broker.sh down >/dev/null
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

if ! scripts/broker.sh status 2>/dev/null; then
  scripts/broker.sh up
  started_broker=yes
fi

say
say "$workers workers wait for tasks:"
set -m
for number in $(seq "$workers"); do
  "$python" worker.py --id "Worker-$number" </dev/null > >(tee "$work/$number") 2>&1 &
  pids+=($!)
done
set +m
wait_for() { # wait_for COUNT PATTERN: until so many lines of the workers match
  for _ in $(seq 1200); do
    [ "$(cat "$work"/* 2>/dev/null | grep -c "$2")" -ge "$1" ] && return
    kill -0 "${pids[0]}" 2>/dev/null || break
    sleep 0.1
  done
  die 1 "the workers did not get there: $2"
}
wait_for "$workers" "Waiting for tasks"

say
say "Eight tasks are sent:"
"$python" sender.py
say
wait_for 8 "Task completed"

stop_workers
wait
pids=()
say
say "Who did what:"
for number in $(seq "$workers"); do
  tasks=$(grep -c "Task completed" "$work/$number" || true)
  difficulty=$(grep "Difficulty" "$work/$number" | grep -o "⭐" | grep -c . || true)
  printf '  Worker-%s: %s tasks, of difficulty %s in all\n' "$number" "$tasks" "$difficulty"
done
say "Each task went to one worker; whoever was free took the next."
