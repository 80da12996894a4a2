#!/usr/bin/env bash
# A real RabbitMQ for RABBITMQ_URL:  broker.sh up|down|status|restart|logs
#
# `up` takes the first of these that works:
#   1. a broker that answers at RABBITMQ_URL already (it is used, and never stopped, by these scripts)
#   2. Docker Compose, where an engine answers and has or gets the image
#   3. a private node of an installed rabbitmq-server, without root, its data in .broker/
#   4. the same, after installing that package where that is allowed
# BROKER_KIND=node or BROKER_KIND=docker leaves no choice. Everything listens on loopback only.
. "$(dirname "$0")/lib.sh"

usage="usage: broker.sh up|down|status|restart|logs"

main() {
  [ $# = 1 ] || die 2 "$usage"
  case $1 in
    up | down | status | restart | logs) ;;
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
  local status=0
  answers || status=$?
  case $status in
    0) say "RabbitMQ answers at $shown${kind:+ (started by this script: $kind)}" && return ;;
    4) die 3 "RabbitMQ answers at $shown but refuses us, see above: set RABBITMQ_URL" ;;
  esac
  case $host in
    localhost | 127.0.0.1 | ::1) ;;
    *) die 3 "nothing answers at $shown, and only a broker on this machine can be started: check RABBITMQ_URL" ;;
  esac
  case ${BROKER_KIND:-} in
    docker) docker_usable || die 3 "BROKER_KIND=docker, but no Docker engine with Compose and rabbitmq:4-management" ;;
    node | "") ;;
    *) die 2 "BROKER_KIND=$BROKER_KIND: must be node or docker" ;;
  esac
  mkdir -p "$state"
  trap 'stop_started; exit 130' INT TERM
  if [ "${BROKER_KIND:-}" != node ] && docker_usable; then
    say "Starting RabbitMQ with Docker Compose ..."
    echo docker >"$state/kind"
    compose up --detach --wait rabbitmq >"$state/docker.log" 2>&1 ||
      { stop_started; die 3 "Docker Compose could not start it: $(tail -n 2 "$state/docker.log")"; }
  else
    find_server || { install_package rabbitmq-server rabbitmq && find_server; } || die 3 "rabbitmq-server is not found"
    say "Starting a private RabbitMQ node, its data in $state ..."
    echo node >"$state/kind"
    start_node
  fi
  wait_until_it_answers
  trap - INT TERM
  say "RabbitMQ answers at $shown"
}

broker_down() {
  case $kind in
    "") say "No broker at $shown was started by this script: nothing to stop" ;;
    *) stop_started && say "Stopped RabbitMQ at $shown; its data is kept" ;;
  esac
}

broker_status() {
  local status=0
  answers || status=$?
  [ "$status" = 0 ] || die 3 "nothing that we can use answers at $shown"
  say "RabbitMQ answers at $shown (${kind:-not started by this script})"
}

broker_restart() {
  case $kind in
    docker) compose restart rabbitmq >/dev/null 2>&1 && compose up --detach --wait rabbitmq >/dev/null 2>&1 ;;
    node) stop_node && find_server && start_node ;;
    *) die 2 "the broker at $shown was not started by this script: restart it yourself" ;;
  esac
  wait_until_it_answers
  say "Restarted RabbitMQ at $shown"
}

broker_logs() {
  case $kind in
    docker) compose logs --no-log-prefix rabbitmq ;;
    node) cat "$state/node.log" ;;
    *) die 2 "the broker at $shown was not started by this script: its logs are elsewhere" ;;
  esac
}

answers() { "$python" scripts/probe.py answers; }

wait_until_it_answers() {
  local tries
  for tries in $(seq 150); do
    answers 2>/dev/null && return
    if [ "$kind" = node ] && ! alive; then break; fi
    sleep 0.2
  done
  stop_started
  die 3 "RabbitMQ did not come up; its log is in $state: $(tail -n 3 "$state"/*.log | tail -n 3)"
}

stop_started() {
  case $(cat "$state/kind" 2>/dev/null) in
    docker) compose rm --stop --force rabbitmq >/dev/null 2>&1 ;;
    node) stop_node ;;
  esac
  rm -f "$state/kind"
}

# Docker

docker_usable() {
  docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1 || return 1
  docker image inspect rabbitmq:4-management >/dev/null 2>&1 || compose pull --quiet rabbitmq >/dev/null 2>&1
}

compose() {
  RABBITMQ_PORT=$port RABBITMQ_USER=$user_name RABBITMQ_PASSWORD=$password RABBITMQ_VHOST=$vhost \
    docker compose --file docker-compose.yml "$@"
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

start_node() {
  # ports of its own, also for the Erlang port mapper, so that no other node of this machine is met
  [ -e "$state/ports" ] || free_ports >"$state/ports"
  # shellcheck disable=SC1091
  . "$state/ports"
  cat >"$state/rabbitmq.conf" <<C
listeners.tcp.1 = 127.0.0.1:$port
distribution.listener.interface = 127.0.0.1
default_user = $user_name
default_pass = $password
default_vhost = $vhost
${BROKER_CONFIG:-}
C
  printf '[].\n' >"$state/enabled_plugins"
  rm -f "$state/pid"
  set -m # a process group of its own: a Ctrl-C in this terminal is not for the broker
  HOME=$state ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=$epmd_port \
    RABBITMQ_NODENAME=rabbit-$port@localhost RABBITMQ_NODE_PORT=$port RABBITMQ_DIST_PORT=$dist_port \
    RABBITMQ_CONF_ENV_FILE=$state/no-such-file RABBITMQ_CONFIG_FILE=$state/rabbitmq.conf \
    RABBITMQ_ENABLED_PLUGINS_FILE=$state/enabled_plugins RABBITMQ_PID_FILE=$state/pid \
    RABBITMQ_MNESIA_BASE=$state/data RABBITMQ_LOG_BASE=$state/log RABBITMQ_LOGS=- \
    nohup "$server" </dev/null >"$state/node.log" 2>&1 &
  launcher=$!
  set +m
  kind=node
}

free_ports() {
  "$python" - <<'P'
import socket

sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
for name, sock in zip(("dist_port", "epmd_port"), sockets):
    print(f"{name}={sock.getsockname()[1]}")
P
}

alive() { kill -0 "${launcher:-0}" 2>/dev/null || kill -0 "$(cat "$state/pid" 2>/dev/null || echo 0)" 2>/dev/null; }

stop_node() {
  local pid
  pid=$(cat "$state/pid" 2>/dev/null || echo "${launcher:-}")
  if [ -n "$pid" ] && kill -TERM "$pid" 2>/dev/null; then
    for _ in $(seq 150); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
  fi
  rm -f "$state/pid"
  # shellcheck disable=SC1091
  . "$state/ports"
  command -v epmd >/dev/null 2>&1 && ERL_EPMD_ADDRESS=127.0.0.1 epmd -port "$epmd_port" -kill >/dev/null 2>&1 || true
}

main "$@"
