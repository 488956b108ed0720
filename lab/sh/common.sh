# shellcheck shell=bash disable=SC2154,SC2034  # variables cross the parts; lab.sh sources them all
# What all parts share: names, addresses, messages, processes. Sourced by lab.sh.

bin=$LAB_CACHE/bin
switch_ns=$LAB_NAME-lab
control_plane_ip=10.240.0.10

say() { echo "lab: $*" >&2; }
fail() { say "$*"; exit 1; }

require_root() {
  [ "$(uname -s)" = Linux ] || fail "the lab needs Linux; set KUBECONFIG to use a cluster you have instead"
  [ "$(id -u)" = 0 ] || fail "the lab needs root (network namespaces, cgroups); run it with sudo, or set KUBECONFIG to use a cluster you have"
}
is_up() { [ -f "$LAB_DIR/ready" ]; }
require_up() { require_root; is_up || fail "no lab is running; start one with 'lab.sh up'"; }
require_node() {
  if [ -z "${1:-}" ] || [ ! -d "$LAB_DIR/node$1" ]; then fail "no Kubernetes node '${1:-}'; there are: $(node_names | tr '\n' ' ')"; fi
}

node_ip() { echo "10.240.0.1$1"; }
node_names() { local d; for d in "$LAB_DIR"/node[0-9]*/; do [ -d "$d" ] && basename "$d"; done; }

# Not `ip netns exec`: that remounts /sys, and a kubelet then finds no cgroups.
in_ns() { local netns=$1; shift; nsenter --net="/run/netns/$netns" "$@"; }
kubectl() { in_ns "$switch_ns" "$bin/kubectl" --kubeconfig "$LAB_DIR/admin.kubeconfig" "$@"; }
enter() {
  export LAB_NAME LAB_DIR LAB_CACHE KUBECONFIG=$LAB_DIR/admin.kubeconfig PATH=$bin:$PATH
  exec nsenter --net="/run/netns/$switch_ns" "$@"
}

# start NAME NETNS CMD...: runs CMD in the background, its log and its process id under NAME.
start() {
  local name=$1 netns=$2; shift 2
  setsid nsenter --net="/run/netns/$netns" "$@" >>"$LAB_DIR/log/$name.log" 2>&1 </dev/null &
  echo $! >"$LAB_DIR/pid/$name"
}

# stop NAME...: kills what `start` started, and only that: a recorded id that now belongs to a stranger is left alone.
stop() {
  local name pid
  for name in "$@"; do
    [ -f "$LAB_DIR/pid/$name" ] || continue
    pid=$(cat "$LAB_DIR/pid/$name")
    if grep -aqF -- "$LAB_DIR/" "/proc/$pid/cmdline" 2>/dev/null; then kill -KILL "$pid" 2>/dev/null || true; fi
    rm -f "$LAB_DIR/pid/$name"
  done
}

# await SECONDS WHAT CMD...: polls CMD until it succeeds; fails naming WHAT.
await() {
  local seconds=$1 what=$2 i; shift 2
  for ((i = 0; i < seconds * 5; i++)); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.2
  done
  say "gave up after $seconds s waiting for $what"
  return 1
}
