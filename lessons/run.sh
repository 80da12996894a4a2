#!/usr/bin/env bash
# usage: lessons/run.sh N [--mended]
#
# Breaks lesson N (1 to 9) against a real broker, and says in one line what came of it.
# With --mended, the very same is done to lesson N+1, which stands it.
#
# Needs a broker at RABBITMQ_URL (scripts/broker.sh up). Takes less than half a minute, and removes its queues.
# LESSON_RESTART_COMMAND: what restarts that broker, where scripts/broker.sh did not start it (for lesson 2).
. "$(dirname "$(readlink -f "$0")")/../scripts/lib.sh"

main() {
  case "$*" in
    -h | --help)
      sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$root/lessons/run.sh"
      exit
      ;;
    [1-9]) number=$1 ;;
    "9 --mended") die 2 "there is no lesson after 9: see the end of lessons/README.md" ;;
    [1-8]" --mended") number=$(($1 + 1)) ;;
    *) die 2 "usage: lessons/run.sh N [--mended], N from 1 to 9" ;;
  esac
  ensure_python requirements.txt
  RABBITMQ_URL=$(first_url) || exit 2
  export RABBITMQ_URL PYTHONUNBUFFERED=1
  lesson=$(echo "$root/lessons/${number}"_*.py)
  queue=lesson-$number
  broker check || exit $?
  work=$(mktemp -d)
  pids=()
  trap finish EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  cd "$work" # where lesson 9 keeps its ledger
  say "Break $1, on lessons/$(basename "$lesson"):"
  "break_$1"
}

break_1() {
  say "five tasks of a second; the worker is killed in the second one."
  send soup:1 pasta:1 pizza:1 salad:1 tea:1
  start worker
  wait_for worker "^pasta begun" 1
  kill_last
  show worker
  local finished never
  finished=$(count worker ' done$')
  never=$((5 - $(left 3) - $(count worker ' begun$')))
  [ "$never" -ge 0 ] || never=0 # what was begun may be back in the queue
  say "lost $((5 - finished - $(left))) of 5 ($never of them never begun)"
}

break_2() {
  local restart=${LESSON_RESTART_COMMAND:-"\"$root/scripts/broker.sh\" restart"}
  say "five tasks; then the broker is restarted."
  send soup:1 pasta:1 pizza:1 salad:1 tea:1
  left 5 >/dev/null
  (cd "$root" && eval "$restart") >restart 2>&1 </dev/null ||
    die 3 "this broker has to be restarted: set LESSON_RESTART_COMMAND to a command that does it ($(tail -n 1 restart))"
  broker wait
  show sent
  say "lost $((5 - $(left 5))) of 5"
}

break_3() {
  say "eight tasks; a second worker is started after the first."
  send soup:0.5 pasta:0.5 pizza:0.5 salad:0.5 tea:0.5 cake:0.5 rice:0.5 bread:0.5
  start first
  wait_for first ' begun$' 1
  start second
  wait_for 'first second' ' done$' 8
  say "the first worker did $(count first ' done$') of 8, the second $(count second ' done$')"
}

break_4() {
  say "three tasks, from a sender in which the queue is misspelt."
  start sender 's/"", QUEUE,/"", "lessson",/' send soup:1 pasta:1 pizza:1
  wait_for_end
  show sender
  local said
  said=$(count sender '^sent ')
  say "lost without a word: $((said - $(left "$said"))) of 3"
}

break_5() {
  say "a heartbeat of 2 seconds, and a task of 9."
  case $RABBITMQ_URL in
    *\?*) RABBITMQ_URL="$RABBITMQ_URL&heartbeat=2" ;;
    *) RABBITMQ_URL="$RABBITMQ_URL?heartbeat=2" ;;
  esac
  send cake:9
  local name
  for name in first second; do
    [ "$(left)" = 1 ] || break
    start "$name"
    wait_for "$name" ' done$' 1
    sleep 1 # for its acknowledgement, or its end
    kill_last
    show "$name"
  done
  touch second
  say_settled "first second" done
}

break_6() {
  say "Ctrl-C in the middle of a task of two seconds."
  send cake:2
  start worker
  wait_for worker ' begun$' 1
  interrupt_last
  show worker
  say_settled worker done
}

break_7() {
  say "a task that always fails, for four seconds."
  send cake:burnt
  start worker
  wait_for worker ' begun$' 1
  sleep 4
  interrupt_last
  show worker
  say "1 failing task: begun $(times "$(count worker ' begun$')") in 4 s, set aside as dead: $(left 0 "$queue.dead")"
}

break_8() {
  say "a crash between the work and its acknowledgement."
  crash 's/channel.basic_ack(/os._exit(1); &/' 's/^$//'
  say_settled "first second" done
}

break_9() {
  say "an e-mail in place of a row, and a crash after it."
  local mail='s/  # 9.*//; s/^ *first = .*/&; print(name, "e-mailed")'
  crash "$mail; os._exit(1)/" "$mail/"
  say_settled "first second" e-mailed
}

crash() { # crash EDIT_1 EDIT_2: a worker that ends in a task, then one that gets this task again
  send cake:0.5
  start first "$1" work
  wait_for_end
  start second "$2" work
  wait_for second ' begun$' 1
  interrupt_last
  show first
  show second
}

say_settled() { # say_settled LOGS WORD
  say "1 task: $2 $(times "$(count "$1" " $2\$")"), still in the queue: $(left)"
}

times() {
  case $1 in 1) echo once ;; *) echo "$1 times" ;; esac
}

# Senders and workers

send() {
  start sent '' send "$@"
  wait_for_end
  [ "$(count sent '^sent ')" = $# ] || die 1 "the sender failed: $(tail -n 1 sent)"
}

start() { # start LOG [EDIT send|work ...]: the lesson, edited with sed, in the background
  sed "${2:-}" "$lesson" >"$1.py"
  local log=$1
  shift
  [ $# = 0 ] || shift
  [ $# != 0 ] || set -- work
  set -m # a process group of its own: a Ctrl-C in this terminal is for this script
  "$python" -c "$fresh" "$log.py" "$@" </dev/null >"$log" 2>&1 &
  set +m
  pids+=($!)
  last=$!
}

# a caller may have made this script, and with it what it starts, ignore SIGINT
fresh='import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, [sys.executable] + sys.argv[1:])'

wait_for() { # wait_for LOGS PATTERN COUNT
  local try
  for try in $(seq 250); do
    [ "$(count "$1" "$2")" -lt "$3" ] || return 0
    sleep 0.1
  done
  show "$1"
  die 1 "waited in vain for: $2"
}

wait_for_end() {
  local try
  for try in $(seq 250); do
    kill -0 "$last" 2>/dev/null || break
    sleep 0.1
  done
  { wait "$last" || true; } 2>/dev/null
}

interrupt_last() {
  kill -INT "$last" 2>/dev/null || true
  wait_for_end
}

kill_last() {
  kill -KILL "$last" 2>/dev/null || true
  { wait "$last" || true; } 2>/dev/null
}

count() { # count LOGS PATTERN
  # shellcheck disable=SC2086
  cat $1 | grep -c -- "$2" || true
}

show() { # show LOG: its first lines, and of an error the last one
  grep -E '^[a-z-]+ |^[A-Za-z.]*(Error|Interrupt)' "$1" | sed -n -e 's/^/  /' -e 1,6p -e '7s/.*/  .../p'
}

left() { # left [EXPECTED [QUEUE]]: the tasks in the queue, once the workers that have ended are known to have
  broker left "${2:-$queue}" "${1:-0}"
}

finish() {
  trap '' INT TERM HUP
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill -KILL "$pid" 2>/dev/null || true
    { wait "$pid" || true; } 2>/dev/null
  done
  broker clean 2>/dev/null || true
  cd "$root"
  rm -rf "$work"
}

# The broker

first_url() {
  "$python" -c '
import sys
import config
try:
    print(config.load().rabbitmq_urls[0])
except config.SettingError as error:
    sys.exit(str(error))'
}

broker() { # broker check | wait | clean | left QUEUE EXPECTED
  "$python" - "$queue" "$@" <<'P'
import contextlib
import os
import signal
import sys
import time

import pika
from pika.exceptions import ChannelClosedByBroker

queue, what, *rest = sys.argv[1:]
if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback
deadline = time.monotonic() + (60 if what == "wait" else 0)


def connect():
    while True:
        try:
            return pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"]))
        except Exception as error:
            if time.monotonic() > deadline:
                print(f"run.sh: no broker answers ({type(error).__name__}): scripts/broker.sh up starts one", file=sys.stderr)
                sys.exit(3)
            time.sleep(0.2)


def state(name):
    channel = connection.channel()
    found = channel.queue_declare(name, passive=True).method
    channel.close()
    return found


def drop():
    for name in (queue, f"{queue}.retry", f"{queue}.dead"):
        connection.channel().queue_delete(name)


connection = connect()
if what == "check":
    with contextlib.suppress(ChannelClosedByBroker):
        patience = time.monotonic() + 2  # with a worker that has only just ended
        while state(queue).consumer_count and time.monotonic() < patience:
            time.sleep(0.05)
        if state(queue).consumer_count:
            connection.close()
            print(f"run.sh: somebody works on {queue}: stop that worker first", file=sys.stderr)
            sys.exit(2)
    drop()
elif what == "clean":
    drop()
elif what == "left":
    name, expected = rest[0], int(rest[1])
    patience = time.monotonic() + 2
    try:
        while (found := state(name)).consumer_count or (found.message_count < expected and time.monotonic() < patience):
            time.sleep(0.05)
        print(found.message_count)
    except ChannelClosedByBroker:
        print(0)
connection.close()
P
}

main "$@"
