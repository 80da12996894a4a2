# Sourced by the scripts beside it: where the project is, its Python environment, and how to install what is missing.
# Portable bash (3.2 of macOS included).

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
python=$root/.venv/bin/python

say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() { # die EXIT_CODE MESSAGE
  local code=$1
  shift
  warn "$*"
  exit "$code"
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

apt_install() { # apt_install PACKAGE SUDO
  say "Installing $1 ..."
  local log
  log=$(mktemp)
  # a server that is only installed must not start listening: Debian asks this file before it starts a service
  local policy=/usr/sbin/policy-rc.d status=0
  (
    if [ ! -e "$policy" ]; then
      trap '$2 rm -f "$policy"' EXIT
      trap 'exit 130' INT TERM
      printf '#!/bin/sh\nexit 101\n' | $2 tee "$policy" >/dev/null
      $2 chmod +x "$policy"
    fi
    $2 apt-get update && $2 env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$1"
  ) >"$log" 2>&1 </dev/null || status=$?
  if [ "$status" != 0 ]; then
    tail -n 5 "$log" >&2
    die 3 "$1 could not be installed; the whole log is $log"
  fi
  rm -f "$log"
}

# ensure_python REQUIREMENTS_FILE: makes .venv hold exactly those packages. Quick when it already does.
ensure_python() {
  local stamp=.venv/installed.txt # the file whose packages are in it; requirements-test.txt holds the others as well
  if cmp -s "$1" "$stamp" || cmp -s requirements-test.txt "$stamp"; then
    if "$python" -c 'import dotenv, pika' 2>/dev/null; then return; fi
  fi
  local base
  base=$(find_python)
  if ! [ -e .venv/bin/activate ] || ! "$python" -m pip --version >/dev/null 2>&1; then
    say "Creating .venv with $("$base" --version) ..."
    # over what an interrupt may have left of it
    if ! "$base" -m venv .venv >/dev/null 2>&1; then
      install_package python3-venv python
      "$base" -m venv .venv || die 3 "no environment could be made in .venv; delete what is there, and try again"
    fi
  fi
  say "Installing the packages of $1 ..."
  local status=0
  "$python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$1" || status=$?
  case $status in
    0) ;;
    130 | 143) exit "$status" ;;
    *) die 3 "the packages of $1 could not be installed, see above: is there a network?" ;;
  esac
  cp "$1" "$stamp"
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  die 2 "Python 3.11 or newer is needed; set PYTHON to it if it has another name"
}
