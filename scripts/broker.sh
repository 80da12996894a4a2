#!/usr/bin/env bash
# usage: broker.sh up [--nodes N] | down | status | restart | logs | queues | ctl ARGUMENTS
#
# A real RabbitMQ for RABBITMQ_URL. `up` takes the first of these that works:
#   1. a broker that answers at RABBITMQ_URL already (it is used, and never stopped, by these scripts)
#   2. Docker Compose, where an engine answers and has or gets the image
#   3. a private node of an installed rabbitmq-server, without root, its data in .broker/
#   4. the same, after installing that package where that is allowed
# BROKER_KIND=node or BROKER_KIND=docker leaves no choice. Everything listens on loopback only.
# With --nodes N, N private nodes form a cluster, on the port of RABBITMQ_URL and those after it.
#
#   down      stops what `up` has started; its data is kept
#   queues    the queues of TASK_QUEUE: ready, unacknowledged, consumers
#   ctl       rabbitmqctl for the broker that `up` has started: broker.sh ctl list_queues name messages
#
# demo.sh calls `up --temporary` and `down --unused`: a broker that nobody asked for with `up` is stopped by the last
# demo that uses it.
. "$(dirname "$(readlink -f "$0")")/lib.sh"

main() {
  nodes=1 temporary='' unused='' interrupted='' launched=''
  case "$*" in
    up | down | status | restart | logs | queues) ;;
    "up --nodes "[1-9]) nodes=$3 ;;
    "up --temporary") temporary=yes ;;
    "down --unused") unused=yes ;;
    "ctl "?*) ;;
    *) wrong_use ;;
  esac
  ensure_python requirements.txt
  know_broker
  local command=$1
  shift
  "broker_$command" "$@"
}

broker_up() {
  local status=0
  answers 0 || status=$?
  [ -n "$kind" ] || may_start "$status" || return 0
  one_at_a_time
  status=0 # somebody may have started or stopped it meanwhile
  answers 0 2>/dev/null || status=$?
  [ -n "$kind" ] || may_start "$status" || return 0
  case $kind,$status in
    docker,0) [ "$nodes" = 1 ] || die 3 "the broker at $shown runs in Docker, as a single node: stop it with broker.sh down" ;;
    ?*,4) die 3 "the broker at $shown, which this script has started, refuses us: broker.sh restart makes it take" \
      "the user, password and virtual host of RABBITMQ_URL" ;;
    *) start_broker ;;
  esac
  [ -n "$temporary" ] || touch "$state/kept"
  say "RabbitMQ answers at $shown (started by this script: $kind)"
  [ "$nodes" = 1 ] || say_cluster_url
}

may_start() { # may_start STATUS: of `answers`. Fails where somebody else's broker answers and is to be used
  case $1 in
    0)
      [ "$nodes" = 1 ] || die 3 "a broker that this script did not start answers at $shown: it cannot become $nodes nodes"
      say "RabbitMQ answers at $shown (not started by this script)"
      return 1
      ;;
    4) die 3 "RabbitMQ answers at $shown but refuses us, see above: set RABBITMQ_URL" ;;
  esac
  case $host in
    localhost | 127.0.0.1) ;;
    *) die 3 "nothing answers at $shown, and only a broker on this machine can be started: check RABBITMQ_URL" ;;
  esac
  [ -z "$tls" ] || die 3 "nothing answers at $shown, and a broker that speaks TLS has to be set up by hand"
  [ -n "$password" ] || die 2 "RABBITMQ_URL has no password, and RabbitMQ lets nobody in without one: user:password@"
  case ${BROKER_KIND:-} in
    docker) docker_usable || die 3 "BROKER_KIND=docker, but no Docker engine with Compose and rabbitmq:4-management" ;;
    node | "") ;;
    *) die 2 "BROKER_KIND=$BROKER_KIND: must be node or docker" ;;
  esac
}

start_broker() { # of the kind that there is already, or else of the one that this machine can run
  all_or_nothing
  if [ -z "$kind" ]; then
    if [ "${BROKER_KIND:-}" != node ] && [ "$nodes" = 1 ] && docker_usable; then
      kind=docker
    else
      find_server || { install_package rabbitmq-server rabbitmq && find_server; } || die 3 "rabbitmq-server is not found"
      kind=node
    fi
    rm -f "$state/kept"
    echo "$kind" >"$state/kind"
  fi
  "start_$kind"
  if [ "$kind" = node ] && [ "$nodes" -gt 1 ]; then form_cluster; fi
  rm -f "$state/making"
  trap - EXIT INT TERM HUP
}

broker_down() {
  if [ -z "$kind" ]; then
    [ -n "$unused" ] || say "No broker at $shown was started by this script: nothing to stop"
    return
  fi
  one_at_a_time
  if [ -n "$unused" ] && is_used; then return; fi
  trap '' INT TERM HUP # half stopped would help nobody
  "stop_$kind"
  rm -f "$state/kind" "$state/kept"
  say "Stopped RabbitMQ at $shown; its data is kept"
}

is_used() { # by somebody who has called `up`, by another demo, or by anybody else who is connected
  [ ! -e "$state/kept" ] || return 0
  exec 7>>"$state/in-use"
  hold 7 alone 1 || return 0
  local tries
  for tries in 1 2 3; do # a connection that was closed a moment ago may still be listed
    if [ -z "$(broker_ctl --silent list_connections pid 2>/dev/null || true)" ]; then return 1; fi
    sleep 0.5
  done
  say "RabbitMQ at $shown runs on, since somebody is connected; stop it with scripts/broker.sh down"
}

broker_status() {
  local status=0
  answers 0 || status=$?
  [ "$status" = 0 ] || die 3 "nothing that we can use answers at $shown"
  say "RabbitMQ answers at $shown (${kind:-not started by this script})"
}

broker_restart() {
  [ -n "$kind" ] || die 2 "the broker at $shown was not started by this script: restart it yourself"
  one_at_a_time
  "stop_$kind"
  start_broker
  say "Restarted RabbitMQ at $shown"
}

broker_logs() {
  case $kind in
    docker) compose logs --no-log-prefix rabbitmq ;;
    node) cat "$state"/*.log ;;
    *) die 2 "the broker at $shown was not started by this script: its logs are elsewhere" ;;
  esac
}

broker_queues() {
  local unacknowledged=
  if [ -n "$kind" ]; then
    unacknowledged=$(broker_ctl list_queues --quiet --formatter json -p "$vhost" name messages_unacknowledged)
  fi
  "$python" scripts/probe.py queues "$unacknowledged"
}

broker_ctl() {
  case $kind in
    docker) compose exec -T rabbitmq rabbitmqctl "$@" ;;
    node)
      find_server || die 3 "rabbitmq-server is not found any more"
      read_ports
      local node_port
      for node_port in $ports; do if runs "$node_port"; then break; fi; done
      node_ctl "$node_port" "$@"
      ;;
    *) die 2 "the broker at $shown was not started by this script: call rabbitmqctl where it runs" ;;
  esac
}

one_at_a_time() { # until this script ends; what it knew before it waited is looked up again
  mkdir -p "$state"
  exec 9<"$state"
  hold 9 alone 1 || { warn "waiting for another broker.sh ..." && hold 9 alone 300; } ||
    die 3 "another broker.sh holds $state, and has not come to an end"
  kind=$(cat "$state/kind" 2>/dev/null || true)
}

answers() { run "$python" scripts/probe.py answers "$@"; } # 0: yes, 3: nothing answers, 4: we are refused

port_answers() { [ "$("$python" -c 'import socket, sys; print(socket.socket().connect_ex(("127.0.0.1", int(sys.argv[1]))))' "$port")" = 0 ]; }

run() { # run COMMAND ...: in a process group of its own, so that a Ctrl-C finds us waiting here and nothing half done
  local pid code=0
  set -m
  "$@" </dev/null &
  pid=$!
  set +m
  wait "$pid" || code=$?
  [ -z "$interrupted" ] || { kill -TERM -- "-$pid" && wait "$pid"; } 2>/dev/null || true
  return "$code"
}

# all_or_nothing: from here on, what does not come to its end leaves nothing behind that was not there before
all_or_nothing() {
  trap 'interrupted=yes' INT TERM HUP # looked at where it can be obeyed
  trap give_up EXIT
}

obey_interrupt() { [ -z "$interrupted" ] || exit 130; }

give_up() {
  local code=$? lock
  trap '' INT TERM HUP
  trap - EXIT
  [ -z "$launched" ] || "stop_$kind" $launched
  for lock in "$state"/*.lock; do
    if [ "$kind" = node ] && runs "$(basename "$lock" .lock)"; then exit "$code"; fi # it ran before
  done
  rm -f "$state/kind" "$state/kept"
  [ -z "$interrupted" ] || code=130
  exit "$code"
}

# Docker

docker_usable() {
  run docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1 || return 1
  docker image inspect rabbitmq:4-management >/dev/null 2>&1 || run compose pull --quiet rabbitmq >/dev/null 2>&1
}

# In a project of its own for each checkout and port: what somebody else runs with Compose is not met. The caller's
# .env is for the programs: Compose would read it otherwise, and refuse some.
compose() {
  local variable
  (
    for variable in ${!COMPOSE_@}; do unset "$variable"; done
    RABBITMQ_PORT=$port RABBITMQ_USER=$user_name RABBITMQ_PASSWORD=$password RABBITMQ_VHOST=$vhost \
      RABBITMQ_MANAGEMENT_PORT=${RABBITMQ_MANAGEMENT_PORT:-$(free_management_port)} \
      exec docker compose --project-name "$(project)" --env-file /dev/null --file docker-compose.yml "$@"
  )
}

compose_volume() { docker volume ls --quiet --filter "name=^$(project)_rabbitmq\$"; }

project() { echo "work-queue-$port-$(printf '%s' "$root" | cksum | cut -d ' ' -f 1)"; }

start_docker() {
  say "Starting RabbitMQ with Docker Compose ..."
  launched=rabbitmq
  [ ! -e "$state/making" ] || stop_docker
  [ -n "$(compose_volume)" ] || touch "$state/making"
  run compose up --detach --wait rabbitmq >"$state/docker.log" 2>&1 ||
    { obey_interrupt && die 3 "Docker Compose could not start it: $(tail -n 2 "$state/docker.log")"; }
  wait_until_it_answers "$port"
}

stop_docker() { # keeps the volume, if RabbitMQ has once filled it
  local said volumes=
  [ ! -e "$state/making" ] || volumes=--volumes
  said=$(compose down $volumes 2>&1) || die 3 "Docker Compose could not stop RabbitMQ at $shown: $(last_lines "$said")"
  # another engine than the one that runs it stops nothing, and says nothing
  ! port_answers || die 3 "Docker Compose stopped RabbitMQ, but something still answers on port $port:" \
    "is it with another Docker engine (DOCKER_HOST, docker context)?"
}

free_management_port() { # 15672 unless something listens there, else any
  "$python" -c 'import socket; socket.create_server(("127.0.0.1", 15672)); print(15672)' 2>/dev/null || echo 0
}

# Private nodes. Each holds a lock on PORT.lock as long as a process of it lives: no number of a process, which
# could be another's by now, is trusted. PORT.group is the number of its process group.

find_server() { # the plain script: the one in Debian's PATH changes to another user when it is run by root
  local folder
  for folder in /usr/lib/rabbitmq/bin /opt/homebrew/sbin /usr/local/sbin; do
    if [ -x "$folder/rabbitmq-server" ]; then
      server=$folder/rabbitmq-server
      return
    fi
  done
  server=$(command -v rabbitmq-server)
}

read_ports() { # those of the nodes (ports), and between them (dist_ports); epmd_port of the Erlang port mapper
  # shellcheck disable=SC1091
  . "$state/ports"
  local count
  count=$(set -- $dist_ports && echo $#)
  ports=$(seq "$port" $((port + count - 1)))
}

start_node() {
  find_server || die 3 "rabbitmq-server is not found any more"
  case $state in *[\'\"]*) die 3 "RabbitMQ cannot have quotes in a folder's name, as in $state: set BROKER_DIR" ;; esac
  # a start that did not come to its end has left half of a database, which would never boot
  [ ! -e "$state/making" ] || rm -rf "$state/data" "$state"/*.joined
  [ -e "$state/data" ] || touch "$state/making"
  # ports of their own, so that no other node of this machine is met
  "$python" scripts/probe.py ports "$nodes" "$state/ports"
  read_ports
  nodes=$(set -- $ports && echo $#)
  (umask 077 && "$python" scripts/probe.py definitions >"$state/definitions.json")
  printf '[].\n' >"$state/enabled_plugins"
  local node_port others=$((nodes - 1))
  for node_port in $ports; do launch "$node_port"; done
  [ -z "$launched" ] ||
    say "Starting a private RabbitMQ node$([ "$others" = 0 ] || echo " and $others more"), its data in $state ..."
  for node_port in $ports; do wait_until_it_answers "$node_port"; done
}

launch() { # launch PORT: unless it runs
  exec 6>>"$state/$1.lock"
  if ! hold 6 alone 0.3; then
    exec 6>&-
    return
  fi
  # user, password and virtual host come as JSON, where each character can be written; they are read at each start
  cat >"$state/$1.conf" <<C
listeners.tcp.1 = 127.0.0.1:$1
distribution.listener.interface = 127.0.0.1
load_definitions = definitions.json
${BROKER_CONFIG:-}
C
  rm -f "$state/$1.pid"
  local number=$((1 + $1 - port))
  set -m # a process group of its own: a Ctrl-C in this terminal is not for the broker
  (
    cd "$state" # where a crash leaves its dump; and an unusual name of a folder above it need not be written anywhere
    own_erlang
    export RABBITMQ_NODENAME=rabbit-$1@localhost RABBITMQ_NODE_PORT=$1
    RABBITMQ_DIST_PORT=$(set -- $dist_ports && echo "${!number}")
    export RABBITMQ_DIST_PORT RABBITMQ_CONFIG_FILE=$1.conf RABBITMQ_ENABLED_PLUGINS_FILE=enabled_plugins
    export RABBITMQ_LOGS=- RABBITMQ_PID_FILE=$1.pid RABBITMQ_MNESIA_BASE=$state/data RABBITMQ_LOG_BASE=$state/log
    # a retry that meets a work queue that is still coming up is handed over again after 5 s, and not after 3 minutes
    export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-rabbit dead_letter_worker_publisher_confirm_timeout 5000"
    exec 7>&- 8>&- 9>&- # by itself: with a command to go over to, bash 3.2 keeps copies, and with them the locks
    exec nohup "$server" </dev/null >"$1.log" 2>&1
  ) &
  echo $! >"$state/$1.group"
  set +m
  disown # bash would report how it ended
  exec 6>&-
  launched="$launched $1"
}

own_erlang() { # the settings of another node of this machine are not for ours
  local variable
  for variable in ${!RABBITMQ_@} ${!ERL_@}; do unset "$variable"; done
  export HOME=. RABBITMQ_CONF_ENV_FILE=no-such-file ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=$epmd_port
}

runs() { # runs PORT: whether our node there does
  [ -e "$state/$1.lock" ] && ! hold 6 shared 0 6<"$state/$1.lock"
}

wait_until_it_answers() { # wait_until_it_answers PORT
  local tries status again=
  for tries in $(seq 40); do
    obey_interrupt
    status=0
    answers 2 "$1" 2>/dev/null || status=$?
    [ "$status" != 0 ] || return 0
    if [ "$kind" = node ] && ! runs "$1"; then
      [ -z "$again" ] || break
      again=yes # where a node was killed a moment ago, its name or its port may still be taken
      launch "$1"
    elif [ "$status" = 4 ]; then
      sleep 0.2 # it listens a moment before it knows its users
    fi
  done
  obey_interrupt
  die 3 "RabbitMQ did not come up; its log is in $state: $(cat "$state/$1.log" "$state/docker.log" 2>/dev/null | tail -n 3)"
}

form_cluster() {
  local other
  for other in $ports; do
    [ "$other" != "$port" ] && [ ! -e "$state/$other.joined" ] || continue
    { node_ctl "$other" stop_app && node_ctl "$other" join_cluster "rabbit-$port@localhost" &&
      node_ctl "$other" start_app; } >/dev/null || die 3 "the node on port $other could not join the cluster"
    touch "$state/$other.joined"
  done
}

node_ctl() { # node_ctl PORT COMMAND ...
  (
    cd "$state"
    own_erlang
    export RABBITMQ_NODENAME=rabbit-$1@localhost
    shift
    exec "$(dirname "$server")/rabbitmqctl" "$@"
  )
}

say_cluster_url() { # a password is shown to nobody: what can be pasted reads it from a file
  (umask 077 && "$python" scripts/probe.py urls "$nodes" >"$state/url")
  say "All nodes: export RABBITMQ_URL=\"\$(cat $(printf '%q' "$state/url"))\""
}

stop_node() { # stop_node [PORT ...]: all, without ports
  local node_port signal=TERM
  if [ -s "$state/ports" ]; then read_ports; fi
  [ ! -e "$state/making" ] || signal=KILL # nothing is in it yet, and a node that boots is slow to stop
  for node_port in ${*:-${ports:-}}; do
    if runs "$node_port"; then kill "-$signal" -- "-$(cat "$state/$node_port.group")" || true; fi
  done
  for node_port in ${*:-${ports:-}}; do
    [ -e "$state/$node_port.lock" ] || continue
    hold 6 shared 20 6<"$state/$node_port.lock" || kill -KILL -- "-$(cat "$state/$node_port.group")" || true
    hold 6 shared 5 6<"$state/$node_port.lock" || die 3 "the node on port $node_port does not end"
    rm -f "$state/$node_port.pid"
  done
  # the port mapper, which the first node has started, refuses to end as long as a node is known to it
  if [ -n "${epmd_port:-}" ] && command -v epmd >/dev/null 2>&1; then
    ERL_EPMD_ADDRESS=127.0.0.1 epmd -port "$epmd_port" -kill >/dev/null 2>&1 || true
  fi
}

main "$@"
