#!/usr/bin/env bash
# usage: pictures.sh [--draw]
#
# Records real runs on a private broker (two minutes), and makes of them docs/replay.html, which replays them, and the
# pictures of README.md and docs/. With --draw it records nothing, and takes the runs that docs/recordings/ has.
. "$(dirname "$(readlink -f "$0")")/lib.sh"

case $#,${1:-} in
  0,) record=--record ;;
  1,--draw) record= ;;
  *) wrong_use ;;
esac
unset PYTHONPATH
ensure_python requirements.txt
exec "$python" scripts/pictures.py $record
