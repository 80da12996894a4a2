#!/usr/bin/env bash
# usage: sourced by the scripts beside it, not run
#
# Where the project is, its Python environment, how to install what is missing, and locks.
# Portable bash (3.2 of macOS included).

set -euo pipefail
set +o posix +o noclobber +o noglob # a caller may have exported his, and functions
for name in $(compgen -A function); do unset -f "$name"; done
unset CDPATH BASH_ENV ENV POSIXLY_CORRECT GREP_OPTIONS PYTHONHOME PYTHONSAFEPATH PYTHONINSPECT
[ -d "${TMPDIR:-/tmp}" ] && [ -w "${TMPDIR:-/tmp}" ] || export TMPDIR=/tmp

script=$(readlink -f "$0")
caller_dir=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
case ${BROKER_DIR:-/} in /*) ;; *) BROKER_DIR=$caller_dir/$BROKER_DIR ;; esac
cd "$root"

# where .venv and .broker are: in the checkout, or in the user's cache for a checkout that he cannot write to
place=$root
[ -w "$root" ] || place=${XDG_CACHE_HOME:-$HOME/.cache}/work-queue-$(printf '%s' "$root" | cksum | cut -d ' ' -f 1)
python=$place/.venv/bin/python

say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "$(basename "$script")" "$*" >&2; }
die() { # die EXIT_CODE MESSAGE
  local code=$1
  shift
  warn "$*"
  exit "$code"
}

# The comment at the top of each script is its help, and the first line of that its usage.
help() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$script"; }
wrong_use() { die 2 "$(sed -n '2s/^# //p' "$script")"; }
case ${1:-} in
  -h | --help)
    help
    exit
    ;;
esac

# hold FD shared|alone SECONDS: locks the file that is open as FD, or fails after so long. The lock ends when the last
# process that has inherited FD closes it or ends, however that happens. (Not every system has a program for this.)
hold() {
  local interpreter=$python
  [ -x "$interpreter" ] || interpreter=$(find_python)
  "$interpreter" -I -S -c '
import fcntl, sys, time
fd, how, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
end = time.monotonic() + seconds
while True:
    try:
        fcntl.flock(fd, fcntl.LOCK_NB | (fcntl.LOCK_SH if how == "shared" else fcntl.LOCK_EX))
        break
    except BlockingIOError:
        if time.monotonic() >= end:
            sys.exit(1)
        time.sleep(0.02)
' "$@"
}

# know_broker: what RABBITMQ_URL says (host, port, user_name, vhost, tls, shown), where we keep what we know
# of a broker there (state), and which kind of broker we have started (kind: node, docker, or empty).
know_broker() {
  local facts
  facts=$("$python" scripts/probe.py url) || exit 2
  eval "$facts"
  state=${BROKER_DIR:-$place/.broker}/$port
  kind=$(cat "$state/kind" 2>/dev/null || true)
}

borrow_broker() { # after know_broker: one that answers, or one that is started; nobody else stops it until it is returned
  mkdir -p "$state"
  exec 7>>"$state/in-use"
  hold 7 shared 60 || die 3 "a broker.sh holds $state, and has not come to an end"
  bash scripts/broker.sh up --temporary
}
return_broker() { # the last one who does stops it, if it was started for that
  exec 7>&-
  bash scripts/broker.sh down --unused >/dev/null || warn "the broker that was started could not be stopped"
}

# install_package DEBIAN_NAME BREW_NAME: installs it where that is allowed, or says how.
install_package() {
  if command -v apt-get >/dev/null 2>&1; then
    local how="apt-get install -y --no-install-recommends $1"
    if [ "$(id -u)" = 0 ]; then
      apt_install "$1" ""
    elif command -v sudo >/dev/null 2>&1 && confirm "Install $1 with sudo?"; then
      apt_install "$1" sudo
    else
      die 3 "$1 is needed: install it as root with: $how"
    fi
  elif command -v brew >/dev/null 2>&1; then
    if confirm "Install $2 with Homebrew?"; then brew install "$2"; else die 3 "$2 is needed: brew install $2"; fi
  else
    die 3 "$1 is needed: install it with your system's package manager"
  fi
}

confirm() { # confirm QUESTION: asks where there is somebody to ask
  [ -t 0 ] && [ -t 2 ] || return 1
  printf '%s [y/N] ' "$1" >&2
  local answer
  read -r answer
  case $answer in [yY]*) return 0 ;; *) return 1 ;; esac
}

apt_install() { # apt_install PACKAGE SUDO: a server that comes with it starts neither now nor at the next boot
  say "Installing $1 ..."
  local log before
  log=$(mktemp)
  before=$(start_at_boot)
  local policy=/usr/sbin/policy-rc.d status=0 # Debian asks this file before it starts a service
  (
    if [ ! -e "$policy" ]; then
      trap '$2 rm -f "$policy"' EXIT
      trap 'exit 130' INT TERM
      printf '#!/bin/sh\nexit 101\n' | $2 tee "$policy" >/dev/null
      $2 chmod +x "$policy"
    fi
    $2 apt-get update && $2 env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$1"
  ) >"$log" 2>&1 </dev/null || status=$?
  local link
  for link in $(start_at_boot); do
    case $'\n'$before$'\n' in *$'\n'$link$'\n'*) continue ;; esac
    case $link in
      */rc?.d/*) $2 update-rc.d "${link##*/S[0-9][0-9]}" disable ;;
      *) $2 rm -f "$link" ;; # which is all that `systemctl disable` does, and not every system has that
    esac
  done >>"$log" 2>&1
  if [ "$status" != 0 ]; then
    tail -n 5 "$log" >&2
    die 3 "$1 could not be installed; the whole log is $log"
  fi
  rm -f "$log"
}

start_at_boot() { find /etc/rc?.d /etc/systemd/system -name 'S[0-9]*' -o -path '*.wants/*' 2>/dev/null || true; }

# ensure_python REQUIREMENTS_FILE: makes .venv hold exactly those packages. Quick when it already does.
ensure_python() {
  if installed "$1"; then return; fi
  mkdir -p "$place"
  exec 8<"$place" # several at once: one installs, the others wait for it
  hold 8 alone 0 || { say "Waiting for another script, which makes .venv ..." && hold 8 alone 600; } ||
    die 3 "another script is making $place/.venv, and has not come to an end"
  installed "$1" || install_packages "$1"
  exec 8<&-
}

installed() { # installed REQUIREMENTS_FILE: some hold others as well
  local stamp=$place/.venv/installed.txt holds="$1 requirements-test.txt" file
  [ "$1" != requirements.txt ] || holds="$holds requirements-examples.txt"
  for file in $holds none; do
    if cmp -s "$file" "$stamp"; then break; fi
  done
  [ "$file" != none ] || return 1
  "$python" -I -c 'import dotenv, pika' 2>/dev/null
}

install_packages() { # install_packages REQUIREMENTS_FILE
  local base venv=$place/.venv problem
  base=$(find_python)
  if ! [ -e "$venv/bin/activate" ] || ! "$python" -I -m pip --version >/dev/null 2>&1; then
    say "Creating .venv with $("$base" --version) ..."
    # over what an interrupt may have left of it
    if ! problem=$("$base" -I -m venv "$venv" 2>&1); then
      case $problem in *ensurepip*) ;; *) die 3 "no environment could be made in $venv: $(last_lines "$problem")" ;; esac
      install_package python3-venv python
      problem=$("$base" -I -m venv "$venv" 2>&1) ||
        die 3 "no environment could be made in $venv; delete it, and try again: $(last_lines "$problem")"
    fi
  fi
  say "Installing the packages of $1 ..."
  local status=0
  # into .venv, wherever the caller's variables send what he installs himself
  (
    unset PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_REQUIRE_VIRTUALENV PIP_NO_DEPS PIP_DRY_RUN PIP_CONSTRAINT
    exec "$python" -I -m pip install --quiet --disable-pip-version-check --no-user --require-hashes -r "$1"
  ) || status=$?
  case $status in
    0)
      cp "$1" "$venv/installed.txt"
      installed "$1" || die 3 "pip has put the packages elsewhere than $venv: what does '$python -m pip config list' say?"
      ;;
    130 | 143) exit "$status" ;;
    *) die 3 "pip could not install the packages of $1; above is what it says" ;;
  esac
}

last_lines() { printf '%s\n' "$1" | tail -n 3; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
    if "$candidate" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  die 2 "Python 3.11 or newer is needed; set PYTHON to it if it has another name"
}
