#!/usr/bin/env bash
# usage: check_compose.sh
#
# Runs docker-compose.yml for real: builds, scales to five workers, sends, looks at who did what, stops gracefully, scales
# up and down in mid-run, changes the password. Needs a Docker engine. Ports, names, a user and a virtual host of its own: it meets nothing else.
. "$(dirname "$(readlink -f "$0")")/lib.sh"

[ $# = 0 ] || wrong_use
ensure_python requirements.txt
docker info >/dev/null 2>&1 || die 3 "a Docker engine is needed"
work=$(mktemp -d)
# an image built where the network of containers leads nowhere can still be built in the host's
printf 'services: {worker: {build: {network: host}}, sender: {build: {network: host}}}\n' >"$work/override.yml"
export COMPOSE_FILE=docker-compose.yml:$work/override.yml COMPOSE_PROJECT_NAME=check-$$
export RABBITMQ_USER='m%e "q' RABBITMQ_PASSWORD="p%a sä\"#\\'\${x}/:@&+" RABBITMQ_VHOST='a/b ä"'
# settings as in an .env file, which the workers must get
printf 'TASK_QUEUE=check\nCONCURRENCY=2\nSECONDS_PER_DIFFICULTY=0.5\n' >"$work/env"
unset TASK_QUEUE CONCURRENCY SECONDS_PER_DIFFICULTY LOG_FORMAT
export COMPOSE_ENV_FILES=$work/env
eval "$("$python" -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
names = ("RABBITMQ_PORT", "RABBITMQ_MANAGEMENT_PORT")
print(*(f"export {name}={s.getsockname()[1]}" for name, s in zip(names, sockets)), sep="\n")')"
trap 'docker compose down --volumes >/dev/null 2>&1; rm -rf "$work"' EXIT

failed() { cat "$work/log" >&2 && docker compose logs --tail 20 >&2 && die 1 "docker compose up failed"; }
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
docker compose up --build --detach --scale worker=3 >"$work/log" 2>&1 || failed
docker compose run --rm sender 2>/dev/null | grep -qx "8 tasks sent, 8 confirmed" || die 1 "the sender did not confirm its tasks"
until_completed 8
# what people are told to use: docker compose logs --follow worker
docker compose logs --no-log-prefix worker | grep "Waiting for tasks in check (prefetch 2)" >/dev/null || die 1 "the workers did not get the settings"

say "Scaling to five workers ..."
docker compose up --detach --scale worker=5 >"$work/log" 2>&1 || failed
[ "$(docker compose ps --quiet worker | wc -l)" -eq 5 ] || die 1 "there are not five workers"
docker compose run --rm sender --count 30 --max-difficulty 1 --quiet 2>/dev/null
until_completed 38
docker compose logs --no-log-prefix worker 2>/dev/null | grep "Task completed" | sort | uniq -c

say "Stopping the workers in mid-task ..."
docker compose run --rm sender --task "Long one" --difficulty 8 --quiet 2>/dev/null
for _ in $(seq 50); do
  docker compose logs worker 2>/dev/null | grep "Received task: Long one" >/dev/null && break
  sleep 0.1
done
docker compose stop worker >/dev/null 2>&1
[ "$(completed)" -eq 39 ] || die 1 "the task that ran was not finished"
[ "$(docker compose logs worker 2>/dev/null | grep -c Stopped)" -eq 5 ] || die 1 "not all workers stopped gracefully"
curl --silent --fail --user "$RABBITMQ_USER:$RABBITMQ_PASSWORD" \
  "http://127.0.0.1:$RABBITMQ_MANAGEMENT_PORT/api/overview" >/dev/null || die 1 "the management pages do not answer"

say "Scaling from 1 to 5 to 2 workers in mid-run ..."
# what they print is kept where it outlives their containers
mkdir -m 777 "$work/ran"
cat >"$work/scale.yml" <<YAML
services:
  worker:
    entrypoint: [sh, -c, 'exec python deploy/container.py worker.py >/ran/\$\$(hostname)']
    volumes: [{ type: bind, source: "$work/ran", target: /ran }]
YAML
export COMPOSE_FILE=$COMPOSE_FILE:$work/scale.yml
ran() { cat "$work"/ran/* | sed -n "s/.*$1.*id: \([0-9]*\).*/\1/p"; } # ran WORDS: ids of the tasks in such lines
until_ran() { # until_ran COUNT
  for _ in $(seq 240); do
    [ "$(ran 'Task completed!' | wc -l)" -ge "$1" ] && return
    sleep 0.25
  done
  die 1 "only $(ran 'Task completed!' | wc -l) of $1 tasks were completed"
}
scale() { docker compose up --detach --wait --scale worker="$1" >"$work/log" 2>&1 || failed; }
scale 1 # and wait until it is healthy
docker compose run --rm sender --count 160 --max-difficulty 1 --quiet 2>/dev/null
until_ran 8
scale 5
until_ran 40
scale 2
done_by_then=$(ran 'Task completed!' | wc -l)
[ "$done_by_then" -lt 160 ] || die 1 "all was done before the workers were scaled down"
until_ran 160
[ "$(docker compose ps --quiet worker | wc -l)" -eq 2 ] || die 1 "there are not two workers"
[ "$(cat "$work"/ran/* | grep -c Stopped)" -eq 3 ] || die 1 "three of the workers did not stop gracefully"
diff <(ran 'Received task' | sort -n) <(seq 160) || die 1 "not every task was begun, and just once"
diff <(ran 'Task completed!' | sort -n) <(seq 160) || die 1 "not every task was completed, and just once"
say "160 tasks, $done_by_then of them before the workers were two again: none lost, none run twice"
export COMPOSE_FILE=${COMPOSE_FILE%:*}

say "Another password for the same data, and a stop in a worker's first moment ..."
docker compose down >/dev/null 2>&1
export RABBITMQ_PASSWORD=another
docker compose up --detach --scale worker=1 >"$work/log" 2>&1 || failed
SECONDS=0
docker compose restart worker >/dev/null 2>&1 # while it starts, its program has no handler for a signal yet
docker compose stop worker >/dev/null 2>&1
[ "$SECONDS" -lt 30 ] || die 1 "stopping a worker that had just started took $SECONDS seconds"
docker compose run --rm sender --task "Another one" --difficulty 0 --quiet 2>/dev/null || die 1 "the new password was refused"
docker compose down >/dev/null 2>&1
say "docker-compose.yml works"
