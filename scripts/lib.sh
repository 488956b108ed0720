# shellcheck shell=bash
# Shared by the scripts beside it, which source it.
# What a target needs it installs (Debian, as root), else it says in one sentence what is missing.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
FANOUT_TOOLS=${FANOUT_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/fanout-tools}
LAB_CACHE=${LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fanout-lab}
export FANOUT_TOOLS LAB_CACHE
PATH=$FANOUT_TOOLS/bin:$PATH

say() { printf '\033[1m== %s\033[0m\n' "$*"; }
[ -t 1 ] && [ -z "${NO_COLOR:-}" ] || say() { printf '== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need COMMAND PACKAGE: makes sure that COMMAND is there, from Debian's PACKAGE if need be.
need() {
  command -v "$1" >/dev/null && return
  can_install || die "$1 is missing: install it (Debian: apt-get install $2)"
  apt_install "$2"
  command -v "$1" >/dev/null || die "$1 is still missing after apt-get install $2"
}

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
apt_install() {
  local log; log=$(mktemp)
  if ! { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@" >"$log" 2>&1 ||
    { apt-get -o DPkg::Lock::Timeout=300 update >"$log" 2>&1 &&
      DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@" >>"$log" 2>&1; }; }; then
    tail -5 "$log" >&2; rm -f "$log"
    die "apt-get install $* failed (see above)"
  fi
  rm -f "$log"
}

need_rust() { command -v cargo >/dev/null || die "cargo is missing: install Rust with rustup (the pinned toolchain is in rust-toolchain.toml)"; need cc build-essential; }
need_go() { command -v go >/dev/null || die "go is missing: install Go 1.26 or newer, the lab builds Kubernetes and helm from source, and a test opens profiles with go tool pprof"; }

# For a test with a client of others; Debian has it apart from Python.
need_venv() {
  need python3 python3
  python3 -c 'import ensurepip, venv' 2>/dev/null && return
  can_install || die "Python's venv is missing: install it (Debian: apt-get install python3-venv)"
  apt_install python3-venv
}

# The real helm: of the lab's build, else any on the PATH.
need_helm() {
  [ -x "$LAB_CACHE/bin/helm" ] || command -v helm >/dev/null || { need_go; "$root/lab/lab.sh" build helm; }
  PATH=$LAB_CACHE/bin:$PATH
}
