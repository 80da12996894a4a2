#!/usr/bin/env bash
# usage: black_friday.sh [--orders N] [--seed S] [--watch] [--hard]
#
# The shop of examples/orders on Black Friday: N orders (2000), two workers, then ten, two of them killed on the way,
# then two again, and the report. A minute or two; it leaves nothing running that it started. --watch shows the live view.
# --hard instead kills a random worker every second, and restarts the broker once, which this script or broker.sh must
# have started. The shop is in a folder that is deleted in the end, or in SHOP_DIR; DATABASE_URL and SMTP_URL hold.
. "$(dirname "$(readlink -f "$0")")/lib.sh"

count=2000 seed=$RANDOM watch='' hard=''
while [ $# -gt 0 ]; do
  case $1,${2:-} in
    --orders,[1-9]*) count=$2 && shift ;;
    --seed,[0-9]*) seed=$2 && shift ;;
    --watch,*) watch=yes ;;
    --hard,*) hard=yes ;;
    *) wrong_use ;;
  esac
  shift
done
case $count$seed in *[!0-9]*) wrong_use ;; esac
unset PYTHONPATH
ensure_python requirements-examples.txt
know_broker

# queues of its own, so that it neither takes nor leaves tasks where somebody works
export TASK_QUEUE=black-friday.$$ QUEUE_TYPE=${QUEUE_TYPE:-classic} PREFETCH_COUNT=1 CONCURRENCY=1 LOG_FORMAT=text
work=$(mktemp -d)
export SHOP_DIR=${SHOP_DIR:-$work/shop}
case $SHOP_DIR in /*) ;; *) SHOP_DIR=$caller_dir/$SHOP_DIR ;; esac
pids=()

stop_all() { # not $(jobs -p): those that have ended are for nobody to signal
  local pid
  for pid in $(jobs -pr); do kill -TERM "$pid" 2>/dev/null || true; done
}
finish() {
  trap stop_all INT TERM HUP
  stop_all
  while [ -n "$(jobs -pr)" ]; do wait 2>/dev/null || true; done # a trapped signal ends `wait` early
  trap '' INT TERM HUP # also for what is called here: nothing of it may be left half done
  rm -rf "$work"
  "$python" scripts/drop_queues.py >/dev/null 2>&1 || true
  return_broker
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

borrow_broker
know_broker
[ -z "$hard" ] || [ -n "$kind" ] || die 2 "--hard restarts the broker, and that at $shown is not ours: set RABBITMQ_URL"

tell() { [ -n "$watch" ] || say "$(printf '%3d s  ' "$SECONDS")$*"; } # the live view has the terminal for itself
start_workers() { # start_workers N
  set -m # a process group for each: the Ctrl-C of this terminal is ours
  for _ in $(seq "$1"); do
    "$python" worker.py --handlers examples.orders.handlers --quiet ${watch:+--events} </dev/null >>"$work/log" 2>&1 7>&- &
    pids+=($!)
  done
  set +m
}
end_one() { # end_one SIGNAL: a random worker, by its number
  local index=$((RANDOM % ${#pids[@]}))
  local pid=${pids[$index]}
  unset "pids[$index]"
  pids=(${pids[@]+"${pids[@]}"})
  kill "-$1" "$pid" 2>/dev/null || true
  [ "$1" = TERM ] || { wait "$pid" || true; } 2>/dev/null
}
until_done() { # until_done PERCENT
  "$python" examples/orders/report.py --wait "$1" --json >/dev/null 7>&- &
  wait $! || true
}

SECONDS=0
start_workers 2
tell "two workers wait; $count orders are placed"
"$python" examples/orders/checkout.py --count "$count" --seed "$seed" >"$work/checkout" 7>&- || exit $?
tell "$(tail -n 1 "$work/checkout")"
if [ -n "$watch" ]; then "$python" scripts/watch.py 7>&- & fi
until_done 5
start_workers 8
tell "ten workers"

if [ -z "$hard" ]; then
  until_done 35
  end_one KILL
  tell "one of them is killed"
  until_done 60
  end_one KILL
  tell "another one is killed"
  until_done 80
  while [ ${#pids[@]} -gt 2 ]; do end_one TERM; done
  tell "back to two: the others were told to stop"
else
  "$python" examples/orders/report.py --wait 7>&- >"$work/wait" &
  waiting=$! kills=0
  while sleep 1 && kill -0 "$waiting" 2>/dev/null; do
    end_one KILL
    start_workers 1
    kills=$((kills + 1))
    if [ $kills = 8 ]; then
      tell "$(bash scripts/broker.sh restart | tail -n 1)"
    fi
  done
  tell "$kills workers were killed, and as many started; the broker was restarted once"
fi

status=0
"$python" examples/orders/report.py --wait 7>&- >"$work/report" & # the shell's own `wait` hears a signal at once
wait $! || status=$?
stop_all
while [ -n "$(jobs -pr)" ]; do wait 2>/dev/null || true; done
say
say "After $SECONDS seconds (seed $seed):"
cat "$work/report"
[ "$status" = 0 ] || tail -n 5 "$work/log" >&2
exit "$status"
