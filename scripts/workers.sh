#!/usr/bin/env bash
# usage: workers.sh N [flags of worker.py ...]
#
# N workers in one terminal, in the folder where you are. Ctrl-C stops them gracefully, a second Ctrl-C at once.
# Called from another terminal while they run, it changes their number to N: more of them start there, or the newest
# drain; with 0, all of them do. There is one such crew for each work queue of a broker. If this script is killed, its
# workers drain by themselves.
. "$(dirname "$(readlink -f "$0")")/lib.sh"

case ${1:-} in
  '' | *[!0-9]* | 0?* | ?????*) wrong_use ;;
esac
count=$1
shift
ensure_python requirements.txt
cd "$caller_dir"
facts=$("$python" "$root/scripts/probe.py" crew "$@") || exit 2
case $facts in
  crew=*) eval "$facts" ;; # and queue
  *) say "$facts" && exit ;; # --help
esac

# Whoever holds the lock `crew` owns the workers of this queue; a call makes up its mind while it holds the lock `door`.
home=$place/.workers/$crew
mkdir -p "$home"
exec 8>>"$home/door" 9>>"$home/crew"
hold 8 alone 30 || die 3 "another call holds $home, and has not come to an end"

ask() { # the owner, who looks at it twice a second
  local owner before
  owner=$(cat "$home/pid") before=$(cat "$home/wanted")
  [ ! -e "$home/stopping" ] || die 1 "the workers of $queue are stopping (process $owner): try again when they have"
  printf '%s\n' "$count" >"$home/wanted.new"
  mv -f "$home/wanted.new" "$home/wanted"
  say "$before workers of $queue were wanted of process $owner: now $count are, with the flags of the first call"
}
if ! hold 9 alone 0; then
  ask
  exit
fi
[ "$count" != 0 ] || { warn "no workers of $queue run that this script has started" && wrong_use; }

stops= # an x for each signal
trap stops+=x INT TERM HUP # from here on without any $(...): a signal that comes there can be an error to bash 5.2
printf '%s\n' "$$" >"$home/pid"
printf '%s\n' "$count" >"$home/wanted"
rm -f "$home/stopping" "$home/leash"
mkfifo "$home/leash" # workers read from it, only we could write to it: when we are gone, they notice
exec 7<>"$home/leash" 6<"$home/leash" 8>&-
rm -f "$home/leash"

flags=("$@")
pids=()     # of workers that take tasks, the oldest first
draining=() # of those that were told to stop
wanted=0
status=0

start_one() {
  set -m # a process group for each: the Ctrl-C of this terminal reaches only us
  "$python" "$root/scripts/scaling/leashed.py" 6 ${flags[@]+"${flags[@]}"} </dev/null 7>&- 8>&- 9>&- &
  pids+=($!)
  set +m
}
drain_newest() {
  local last=$((${#pids[@]} - 1))
  kill -TERM "${pids[last]}" 2>/dev/null || true
  draining+=("${pids[last]}")
  unset "pids[last]"
}
bury() { # takes those that have ended from both lists
  local pid running=' ' kept=()
  jobs -pr >"$home/running"
  jobs -ps >>"$home/running"
  while read -r pid; do running+="$pid "; done <"$home/running"
  for pid in ${pids[@]+"${pids[@]}"}; do
    case $running in *" $pid "*) kept+=("$pid") ;; *) note_end "$pid" ;; esac
  done
  pids=(${kept[@]+"${kept[@]}"})
  kept=()
  for pid in ${draining[@]+"${draining[@]}"}; do # 143: it was not yet up enough to hear the signal, and had no task
    case $running in *" $pid "*) kept+=("$pid") ;; *) note_end "$pid" 143 ;; esac
  done
  draining=(${kept[@]+"${kept[@]}"})
}
note_end() { # of the process $1; $2: also all right
  local code=0
  wait "$1" || code=$?
  case $code in 0 | "${2:-}") ;; *) status=$code ;; esac
}
has_changed() { # the number that is wanted
  local before=$wanted
  read -r wanted <"$home/wanted"
  [ "$wanted" != "$before" ]
}
follow() {
  while [ "${#pids[@]}" -lt "$wanted" ] && [ -z "$stops" ]; do start_one; done
  while [ "${#pids[@]}" -gt "$wanted" ]; do drain_newest; done
}
nap() { # until a signal, or so long
  sleep "$1" 6<&- 7>&- 8>&- 9>&- &
  wait $! || true
}

obeyed= # of these
while :; do
  bury
  if [ -z "$obeyed" ] && [ -n "$stops" ]; then
    : >"$home/stopping"
    nap 0.2 # timeout(1), say, signals a process and then its group, and means to signal once
    obeyed=$stops
    while [ ${#pids[@]} != 0 ]; do drain_newest; done
  elif [ "$obeyed" != "$stops" ]; then
    obeyed=$stops
    kill -TERM ${draining[@]+"${draining[@]}"} 2>/dev/null || true
  elif [ -z "$obeyed" ] && has_changed; then
    follow
  fi
  if [ $((${#pids[@]} + ${#draining[@]})) = 0 ]; then
    exec 8>>"$home/door"
    hold 8 alone 5 || true
    if [ -n "$obeyed" ] || ! has_changed; then exit "$status"; fi
    follow
    exec 8>&-
  elif [ -z "$obeyed" ]; then
    nap 0.5
  else
    nap 0.1
  fi
done
