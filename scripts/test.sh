#!/usr/bin/env bash
# usage: test.sh [PYTEST ARGS]
#
# Everything, from a fresh clone: environment, lint, types, all tests. They wait as long as they work: three files at a
# time, each on brokers of its own (-n 0: one after the other).
. "$(dirname "$(readlink -f "$0")")/lib.sh"

unset PYTHONPATH PYTHONDONTWRITEBYTECODE # hundreds of programs are started: compiled once
ensure_python requirements-test.txt
if [ "$(id -u)" = 0 ] && ! command -v chromedriver >/dev/null 2>&1; then # for the pictures' tests
  install_package fonts-dejavu-core font-dejavu
  install_package chromium-driver chromedriver
fi
if [ "$(id -u)" = 0 ] && [ -z "$(command -v initdb || ls /usr/lib/postgresql/*/bin/initdb 2>/dev/null)" ]; then
  install_package postgresql postgresql # for the orders' tests
fi
if [ "$(id -u)" = 0 ] && ! command -v systemd-analyze >/dev/null 2>&1; then # for the units of deploy/
  install_package systemd systemd
fi
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$python" -m pytest -n 3 --dist loadfile -m "not alone" "$@" || {
  say "What failed beside two others has to pass by itself:"
  "$python" -m pytest -n 0 -m "not alone" --last-failed --last-failed-no-failures none "$@"
}
# what measures time has the machine for itself; pytest says 5 where none of these was asked for
"$python" -m pytest -n 0 -m alone "$@" || [ $? = 5 ]
