#!/usr/bin/env bash
# Everything, from a fresh clone: environment, lint, types, all tests.  test.sh [PYTEST ARGS]
. "$(dirname "$0")/lib.sh"

ensure_python requirements-test.txt
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
exec "$python" -m pytest "$@"
