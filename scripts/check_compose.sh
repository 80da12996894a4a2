#!/usr/bin/env bash
# Runs docker-compose.yml for real: builds, scales to five workers, sends, looks at who did what, stops gracefully.
# Needs a Docker engine. Ports and names of its own, so that it meets nothing else.
. "$(dirname "$0")/lib.sh"

ensure_python requirements.txt
docker info >/dev/null 2>&1 || die 3 "a Docker engine is needed"
override=$(mktemp)
# an image built where the network of containers leads nowhere can still be built in the host's
printf 'services: {worker: {build: {network: host}}, sender: {build: {network: host}}}\n' >"$override"
export COMPOSE_FILE=docker-compose.yml:$override COMPOSE_PROJECT_NAME=check-$$
eval "$("$python" -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
names = ("RABBITMQ_PORT", "RABBITMQ_MANAGEMENT_PORT")
print(*(f"export {name}={s.getsockname()[1]}" for name, s in zip(names, sockets)), sep="\n")')"
trap 'docker compose down --volumes >/dev/null 2>&1; rm -f "$override"' EXIT

completed() { docker compose logs --no-log-prefix worker 2>/dev/null | grep -c "Task completed" || true; }
until_completed() { # until_completed COUNT
  for _ in $(seq 120); do
    [ "$(completed)" -ge "$1" ] && return
    sleep 0.5
  done
  docker compose logs --tail 20 >&2
  die 1 "only $(completed) of $1 tasks were completed"
}

say "Building, and starting RabbitMQ and three workers ..."
docker compose up --build --detach --scale worker=3 >/dev/null 2>&1 || { docker compose logs --tail 20 >&2; die 1 "docker compose up failed"; }
docker compose run --rm sender 2>/dev/null | grep -qx "8 tasks sent, 8 confirmed"
until_completed 8

say "Scaling to five workers ..."
docker compose up --detach --scale worker=5 >/dev/null 2>&1
[ "$(docker compose ps --quiet worker | wc -l)" -eq 5 ] || die 1 "there are not five workers"
docker compose run --rm sender --count 30 --max-difficulty 1 --quiet 2>/dev/null
until_completed 38
docker compose logs --no-log-prefix worker 2>/dev/null | grep "Task completed" | sort | uniq -c

say "Stopping the workers in mid-task ..."
docker compose run --rm sender --task "Long one" --difficulty 4 --quiet 2>/dev/null
for _ in $(seq 50); do
  docker compose logs worker 2>/dev/null | grep -q "Received task: Long one" && break
  sleep 0.1
done
docker compose stop worker >/dev/null 2>&1
[ "$(completed)" -eq 39 ] || die 1 "the task that ran was not finished"
[ "$(docker compose logs worker 2>/dev/null | grep -c Stopped)" -eq 5 ] || die 1 "not all workers stopped gracefully"
curl --silent --fail --user guest:guest "http://127.0.0.1:$RABBITMQ_MANAGEMENT_PORT/api/overview" >/dev/null ||
  die 1 "the management pages do not answer"
docker compose down >/dev/null 2>&1
say "docker-compose.yml works"
