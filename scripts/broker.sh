#!/usr/bin/env bash
# A real RabbitMQ for RABBITMQ_URL:  broker.sh up [--nodes N] | down | status | restart | logs
#
# `up` takes the first of these that works:
#   1. a broker that answers at RABBITMQ_URL already (it is used, and never stopped, by these scripts)
#   2. Docker Compose, where an engine answers and has or gets the image
#   3. a private node of an installed rabbitmq-server, without root, its data in .broker/
#   4. the same, after installing that package where that is allowed
# BROKER_KIND=node or BROKER_KIND=docker leaves no choice. Everything listens on loopback only.
# With --nodes N, N private nodes form a cluster, on the port of RABBITMQ_URL and those after it.
. "$(dirname "$0")/lib.sh"

usage="usage: broker.sh up [--nodes N] | down | status | restart | logs"

main() {
  nodes=1
  case "$*" in
    up | down | status | restart | logs) ;;
    "up --nodes "[1-9]) nodes=$3 ;;
    *) die 2 "$usage" ;;
  esac
  ensure_python requirements.txt
  local facts
  facts=$("$python" scripts/probe.py url) || exit 2
  eval "$facts"
  state=${BROKER_DIR:-$root/.broker}/$port
  kind=$(cat "$state/kind" 2>/dev/null || true)
  "broker_$1"
}

broker_up() {
  local status=0 clustered=
  [ "$nodes" = 1 ] || clustered=yes
  answers 0 || status=$?
  case $status in
    0)
      if [ "$kind" != node ] || [ "$nodes" = 1 ]; then
        say "RabbitMQ answers at $shown${kind:+ (started by this script: $kind)}"
        return
      fi
      ;;
    4) die 3 "RabbitMQ answers at $shown but refuses us, see above: set RABBITMQ_URL" ;;
  esac
  case $host in
    localhost | 127.0.0.1) ;;
    *) die 3 "nothing answers at $shown, and only a broker on this machine can be started: check RABBITMQ_URL" ;;
  esac
  [ -z "$tls" ] || die 3 "nothing answers at $shown, and a broker that speaks TLS has to be set up by hand"
  case ${BROKER_KIND:-} in
    docker) docker_usable || die 3 "BROKER_KIND=docker, but no Docker engine with Compose and rabbitmq:4-management" ;;
    node | "") ;;
    *) die 2 "BROKER_KIND=$BROKER_KIND: must be node or docker" ;;
  esac
  mkdir -p "$state"
  trap 'stop_started; exit 130' INT TERM
  if [ "${BROKER_KIND:-}" != node ] && [ "$nodes" = 1 ] && docker_usable; then
    say "Starting RabbitMQ with Docker Compose ..."
    echo docker >"$state/kind"
    compose up --detach --wait rabbitmq >"$state/docker.log" 2>&1 ||
      { stop_started; die 3 "Docker Compose could not start it: $(tail -n 2 "$state/docker.log")"; }
  else
    find_server || { install_package rabbitmq-server rabbitmq && find_server; } || die 3 "rabbitmq-server is not found"
    say "Starting a private RabbitMQ node${clustered:+ and $((nodes - 1)) more}, its data in $state ..."
    echo node >"$state/kind"
    start_nodes
  fi
  wait_until_it_answers
  [ "$nodes" = 1 ] || form_cluster
  trap - INT TERM
  say "RabbitMQ answers at $shown"
  [ "$nodes" = 1 ] || say "All nodes: RABBITMQ_URL=$(cluster_url)"
}

broker_down() {
  case $kind in
    "") say "No broker at $shown was started by this script: nothing to stop" ;;
    *) stop_started && say "Stopped RabbitMQ at $shown; its data is kept" ;;
  esac
}

broker_status() {
  local status=0
  answers 0 || status=$?
  [ "$status" = 0 ] || die 3 "nothing that we can use answers at $shown"
  say "RabbitMQ answers at $shown (${kind:-not started by this script})"
}

broker_restart() {
  case $kind in
    docker) compose restart rabbitmq >/dev/null 2>&1 && compose up --detach --wait rabbitmq >/dev/null 2>&1 ;;
    node) stop_nodes && find_server && start_nodes ;;
    *) die 2 "the broker at $shown was not started by this script: restart it yourself" ;;
  esac
  wait_until_it_answers
  say "Restarted RabbitMQ at $shown"
}

broker_logs() {
  case $kind in
    docker) compose logs --no-log-prefix rabbitmq ;;
    node) cat "$state"/*.log ;;
    *) die 2 "the broker at $shown was not started by this script: its logs are elsewhere" ;;
  esac
}

answers() { "$python" scripts/probe.py answers "$@"; }

wait_until_it_answers() { # wait_until_it_answers [PORT]: of another node than the first
  local tries again=
  for tries in $(seq 40); do
    local status=0
    answers 2 "$@" 2>/dev/null || status=$?
    case $status in
      0) return ;;
      4)
        stop_started
        die 3 "its data was made with another user name, password or virtual host: use those, or delete $state"
        ;;
    esac
    if [ "$kind" = node ] && ! alive; then
      [ -z "$again" ] || break
      again=yes # where a node was killed a moment ago, its name or its port may still be taken
      start_nodes
    fi
  done
  local last
  last=$(tail -n 3 "$state/$port.log" "$state/docker.log" 2>/dev/null || true) # one of the two is there
  stop_started
  die 3 "RabbitMQ did not come up; its log is in $state: $last"
}

stop_started() {
  case $(cat "$state/kind" 2>/dev/null) in
    docker) compose down >/dev/null 2>&1 ;; # keeps the volume
    node) stop_nodes ;;
  esac
  rm -f "$state/kind"
}

# Docker

docker_usable() {
  docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1 || return 1
  docker image inspect rabbitmq:4-management >/dev/null 2>&1 || compose pull --quiet rabbitmq >/dev/null 2>&1
}

compose() { # in a project of its own for each checkout and port: what somebody else runs with Compose is not met
  local project
  project=work-queue-$port-$(printf '%s' "$root" | cksum | cut -d ' ' -f 1)
  RABBITMQ_PORT=$port RABBITMQ_USER=$user_name RABBITMQ_PASSWORD=$password RABBITMQ_VHOST=$vhost \
    RABBITMQ_MANAGEMENT_PORT=${RABBITMQ_MANAGEMENT_PORT:-$(free_management_port)} \
    docker compose --project-name "$project" --file docker-compose.yml "$@"
}

free_management_port() { # 15672 unless something listens there, else any
  "$python" -c 'import socket; socket.create_server(("127.0.0.1", 15672)); print(15672)' 2>/dev/null || echo 0
}

# A private node

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

start_nodes() {
  # ports of their own, also for the Erlang port mapper, so that no other node of this machine is met
  if [ ! -s "$state/ports" ]; then
    free_ports "$nodes" >"$state/ports.new" && mv "$state/ports.new" "$state/ports"
  fi
  # shellcheck disable=SC1091
  . "$state/ports"
  nodes=$(set -- $dist_ports && echo $#)
  printf '[].\n' >"$state/enabled_plugins"
  local dist_port node_port=$port
  for dist_port in $dist_ports; do
    start_node "$node_port" "$dist_port"
    node_port=$((node_port + 1))
  done
  kind=node
}

start_node() { # start_node PORT DIST_PORT: unless it runs
  case " $(node_pids | tr '\n' ' ')" in *" $(cat "$state/$1.pid" 2>/dev/null || echo none) "*) return ;; esac
  cat >"$state/$1.conf" <<C
listeners.tcp.1 = 127.0.0.1:$1
distribution.listener.interface = 127.0.0.1
default_user = $user_name
default_pass = $password
default_vhost = $vhost
${BROKER_CONFIG:-}
C
  rm -f "$state/$1.pid"
  set -m # a process group of its own: a Ctrl-C in this terminal is not for the broker
  (
    cd "$state" # where a crash would leave its dump
    export HOME=$state ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=$epmd_port
    export RABBITMQ_NODENAME=rabbit-$1@localhost RABBITMQ_NODE_PORT=$1 RABBITMQ_DIST_PORT=$2
    export RABBITMQ_CONF_ENV_FILE=$state/no-such-file RABBITMQ_CONFIG_FILE=$state/$1.conf
    export RABBITMQ_ENABLED_PLUGINS_FILE=$state/enabled_plugins RABBITMQ_PID_FILE=$state/$1.pid
    export RABBITMQ_MNESIA_BASE=$state/data RABBITMQ_LOG_BASE=$state/log RABBITMQ_LOGS=-
    export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-work_queue $1 " # by which we know it again
    exec nohup "$server" </dev/null >"$state/$1.log" 2>&1
  ) &
  launcher=$!
  set +m
}

free_ports() { # free_ports NODES: none that the system gives to outgoing connections, which could take it meanwhile
  "$python" - "$1" <<'P'
import random
import socket
import sys

found = []
for port in random.sample(range(20_000, 32_000), 12_000):
    if len(found) > int(sys.argv[1]):
        break
    try:
        socket.create_server(("127.0.0.1", port)).close()
        found.append(port)
    except OSError:
        pass
epmd, *dist = found
print(f"epmd_port={epmd}\ndist_ports='{' '.join(map(str, dist))}'")
P
}

form_cluster() {
  local number
  for number in $(seq 1 $((nodes - 1))); do
    local other=$((port + number))
    wait_until_it_answers "$other"
    [ ! -e "$state/$other.joined" ] || continue
    ctl "$other" stop_app && ctl "$other" join_cluster "rabbit-$port@localhost" && ctl "$other" start_app ||
      { stop_started; die 3 "the node on port $other could not join the cluster"; }
    touch "$state/$other.joined"
  done >/dev/null
}

ctl() { # ctl PORT COMMAND ...
  local node_port=$1
  shift
  HOME=$state ERL_EPMD_PORT=$epmd_port "$(dirname "$server")/rabbitmqctl" --quiet --node "rabbit-$node_port@localhost" "$@"
}

cluster_url() {
  local number url=
  for number in $(seq 0 $((nodes - 1))); do
    url=$url,${shown/:$port\//:$((port + number))/}
  done
  echo "${url#,}"
}

alive() { kill -0 "${launcher:-0}" 2>/dev/null || any_runs $(node_pids); }

node_pids() { # of the nodes that run: a file may be left of a node that is long gone, and its number be another's now
  local file pid
  for file in "$state"/*.pid; do
    pid=$(cat "$file" 2>/dev/null) || continue
    case $(ps -ww -p "$pid" -o command= 2>/dev/null) in *" -work_queue $(basename "$file" .pid) "*) echo "$pid" ;; esac
  done
}

any_runs() { # any_runs PID ...
  local pid
  for pid in "$@"; do
    [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null && return
  done
  return 1
}

stop_nodes() {
  local pids
  pids=$(node_pids) # a node removes its file long before it has ended
  [ -n "$pids" ] || pids=${launcher:-}
  # shellcheck disable=SC2086
  if [ -n "$pids" ]; then
    kill -TERM $pids 2>/dev/null || true
    for _ in $(seq 200); do
      any_runs $pids || break
      sleep 0.1
    done
    kill -KILL $pids 2>/dev/null || true
  fi
  rm -f "$state"/*.pid
  # shellcheck disable=SC1091
  [ ! -s "$state/ports" ] || . "$state/ports"
  [ -n "${epmd_port:-}" ] && command -v epmd >/dev/null 2>&1 && ERL_EPMD_ADDRESS=127.0.0.1 epmd -port "$epmd_port" -kill >/dev/null 2>&1 || true
}

main "$@"
