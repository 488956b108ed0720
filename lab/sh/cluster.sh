# shellcheck shell=bash disable=SC2154,SC2034  # variables cross the parts; lab.sh sources them all
# The whole cluster: up, down, status, logs. Sourced by lab.sh.

cluster_up() {
  local nodes=${1:-2} began=$SECONDS
  [[ $nodes =~ ^[1-9]$ ]] || fail "'$nodes' is not a number of nodes; the lab takes 1 to 9"
  require_root
  if is_up; then
    [ "$(node_names | wc -l)" = "$nodes" ] && { say "already up with $nodes nodes"; return; }
    fail "already up with $(node_names | wc -l) nodes; 'lab.sh down' first"
  fi
  install_packages
  build_binaries
  build_pause_image
  cluster_down    # what an interrupted start left behind
  trap 'report_failed_start' ERR
  set -E
  mkdir -p "$LAB_DIR"/{pki,log,pid}
  make_switch
  make_pki
  start_control_plane
  start_nodes "$nodes"
  start_addons
  await_ready "$nodes"
  trap - ERR
  touch "$LAB_DIR/ready"
  say "$nodes nodes ready in $((SECONDS - began)) s; 'lab.sh exec CMD' runs inside, KUBECONFIG=$LAB_DIR/admin.kubeconfig"
}

start_nodes() {
  local n
  for ((n = 1; n <= $1; n++)); do make_node "$n"; done
  start_proxy control-plane "$switch_ns"
  for ((n = 1; n <= $1; n++)); do start_policy_engine "$n"; done
}

start_addons() {
  start_dns
  start_metrics_server
  make_volumes
}

await_ready() {
  local n
  for ((n = 1; n <= $1; n++)); do await 60 "node$n to be Ready" node_is_ready "node$n"; done
  await 30 "the default service account" kubectl get serviceaccount default
  await 30 "the metrics API" kubectl get --raw /apis/metrics.k8s.io/v1beta1
  all_running
}

all_running() {
  local file ok=0
  for file in "$LAB_DIR"/pid/*; do
    [ -d "/proc/$(cat "$file")" ] || { say "$(basename "$file") has ended"; ok=1; }
  done
  return $ok
}

report_failed_start() {
  local log
  trap - ERR
  for log in "$LAB_DIR"/log/*.log; do
    [[ $log == */audit.log ]] || { echo "--- $log"; tail -n 5 "$log"; } >&2
  done
  fail "the cluster did not come up; the ends of its logs are above, 'lab.sh down' clears it away"
}

cluster_down() {
  local name
  require_root
  if [ -d "$LAB_DIR" ]; then stop_everything; fi
  for name in $(ip netns list 2>/dev/null | grep -oE "^$LAB_NAME-(lab|node[0-9])\\b"); do ip netns del "$name"; done
  find /sys/fs/cgroup -depth -type d -path "*/$LAB_NAME-node[0-9]*" -exec rmdir {} + 2>/dev/null || true
  rm -rf "$LAB_DIR"
}

stop_everything() {
  local name
  for name in $(node_names); do node_down "${name#node}"; done
  for name in "$LAB_DIR"/pid/*; do stop "$(basename "$name")"; done
  sleep 0.3    # a killed shim gives up its mounts
  unmount_below "$LAB_DIR"
}

cluster_status() {
  is_up || { echo "down"; return 1; }
  kubectl get nodes -o wide
  echo
  local file pid state total=0 kb
  for file in "$LAB_DIR"/pid/*; do
    pid=$(cat "$file") state=running
    kb=$(awk '/^VmRSS/ {print $2}' "/proc/$pid/status" 2>/dev/null) || true
    [ -n "$kb" ] || state=dead
    total=$((total + ${kb:-0}))
    printf '%-28s %-8s %7d kB\n' "$(basename "$file")" $state "${kb:-0}"
  done
  printf '%-28s %-8s %7d kB\n' total '' $total
}

show_logs() {
  if [ $# = 0 ]; then (cd "$LAB_DIR/log" && ls); return; fi
  local log=$LAB_DIR/log/$1.log
  [ -f "$log" ] || fail "no log '$1'; 'lab.sh logs' lists them"
  tail -n "${2:-50}" "$log"
}
