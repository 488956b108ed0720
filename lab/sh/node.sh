# shellcheck shell=bash disable=SC2154,SC2034  # variables cross the parts; lab.sh sources them all
# A Kubernetes node is a network namespace with containerd, kubelet, kube-proxy and kube-router in it. Sourced by lab.sh.

connect_node() { # N: plugs the node into the switch
  local n=$1 netns=$LAB_NAME-node$1 ip; ip=$(node_ip "$1")
  ip -n "$switch_ns" link add "to$n" type veth peer name eth0 netns "$netns"
  ip -n "$switch_ns" link set "to$n" master switch up
  ip -n "$netns" addr add "$ip/24" dev eth0
  ip -n "$netns" link set eth0 up
  ip -n "$netns" route add default via "$control_plane_ip"
  ip -n "$switch_ns" route replace "10.244.$n.0/24" via "$ip"
}

make_node_network() {
  local netns=$LAB_NAME-node$1
  ip netns add "$netns"
  ip -n "$netns" link set lo up
  in_ns "$netns" sysctl -qw net.ipv4.ip_forward=1
  in_ns "$netns" sysctl -qw net.bridge.bridge-nf-call-iptables=1   # so that policies hold between pods of one node
  connect_node "$1"
}

# Each kubelet owns a cgroup subtree; with a shared one they would reap each other's pods.
make_node_cgroup() {
  local name=$LAB_NAME-node$1 controller file
  if [ ! -d /sys/fs/cgroup/memory ]; then mkdir -p "/sys/fs/cgroup/$name"; return; fi
  for controller in /sys/fs/cgroup/*/; do mkdir -p "$controller$name" 2>/dev/null || true; done
  for file in cpus mems; do cat "/sys/fs/cgroup/cpuset/cpuset.$file" >"/sys/fs/cgroup/cpuset/$name/cpuset.$file"; done
}

write_containerd_config() { # DIR
  cat >"$1/containerd.toml" <<TOML
version = 2
root = "$1/containerd"
state = "$1/containerd-state"
[grpc]
  address = "$1/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "fanout.lab/pause:1"
  restrict_oom_score_adj = true        # without CAP_SYS_RESOURCE runc may not lower it
  netns_mounts_under_state_dir = true  # so that the sandboxes go with the directory
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$1/cni"
TOML
}

write_cni_config() { # DIR N
  mkdir -p "$1/cni"
  cat >"$1/cni/10-lab.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "lab", "plugins": [
  {"type": "bridge", "bridge": "pods", "isGateway": true, "hairpinMode": true, "ipam": {"type": "host-local", "dataDir": "$1/ipam",
   "ranges": [[{"subnet": "10.244.$2.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
}

write_kubelet_config() { # DIR NAME
  echo "nameserver 10.96.0.53" >"$1/resolv.conf"
  cat >"$1/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $LAB_DIR/pki/ca.crt}}
tlsCertFile: $LAB_DIR/pki/$2-serving.crt
tlsPrivateKeyFile: $LAB_DIR/pki/$2-serving.key
containerRuntimeEndpoint: unix://$1/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$LAB_NAME-$2
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
evictionHard: {nodefs.available: "0%", imagefs.available: "0%", memory.available: "50Mi"}
podLogsDir: $1/pod-logs
resolvConf: $1/resolv.conf
clusterDNS: [10.96.0.53]
clusterDomain: cluster.local
nodeStatusUpdateFrequency: 4s
syncFrequency: 20s
serializeImagePulls: false
shutdownGracePeriod: 0s
maxPods: 200
YAML
}

start_proxy() { # NAME NETNS
  cat >"$LAB_DIR/$1-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: 10.244.0.0/16
hostnameOverride: $1
clientConnection: {kubeconfig: $LAB_DIR/proxy.kubeconfig}
conntrack: {maxPerCore: 0, min: 0}
iptables: {syncPeriod: 30s, minSyncPeriod: 0.1s}
YAML
  start "$1-proxy" "$2" "$bin/kube-proxy" --config "$LAB_DIR/$1-proxy.yaml"
}

start_containerd() { # NAME
  start "$1-containerd" "$LAB_NAME-$1" containerd -c "$LAB_DIR/$1/containerd.toml"
  await 20 "containerd of $1" ctr -a "$LAB_DIR/$1/containerd.sock" version
  ctr -a "$LAB_DIR/$1/containerd.sock" -n k8s.io images import "$LAB_CACHE/pause.tar" >/dev/null
}

start_node() { # N
  local name=node$1 dir=$LAB_DIR/node$1
  start_containerd "$name"
  start "$name-kubelet" "$LAB_NAME-$name" "$bin/kubelet" --config "$dir/kubelet.yaml" --kubeconfig "$LAB_DIR/$name.kubeconfig" \
    --hostname-override "$name" --node-ip "$(node_ip "$1")" --root-dir "$dir/kubelet" --cert-dir "$dir/pki" \
    --node-labels "topology.kubernetes.io/zone=zone-$1"
  start_proxy "$name" "$LAB_NAME-$name"
}

# It asks for its Node object once, at its start, so the kubelet goes first.
start_policy_engine() { # N
  local name=node$1
  await 60 "$name to register" kubectl get node "$name"
  start "$name-kube-router" "$LAB_NAME-$name" "$bin/kube-router" --kubeconfig "$LAB_DIR/kube-router.kubeconfig" --node "$name" --service-cidr 10.96.0.0/16
}

make_node() { # N
  local name=node$1 dir=$LAB_DIR/node$1
  mkdir -p "$dir"
  make_node_network "$1"
  make_node_cgroup "$1"
  write_containerd_config "$dir"
  write_cni_config "$dir" "$1"
  write_kubelet_config "$dir" "$name"
  kubeconfig "$name" "/O=system:nodes/CN=system:node:$name"
  certificate "$name-serving" ca "/O=system:nodes/CN=system:node:$name" "DNS:$name,IP:$(node_ip "$1")"
  start_node "$1"
}

# Processes of the node's pods: by cgroup, by network namespace, and the shims by the socket they were given.
pod_processes() { # NAME
  find /sys/fs/cgroup/{,pids/}"$LAB_NAME-$1" -name cgroup.procs -exec cat {} + 2>/dev/null || true
  ip netns pids "$LAB_NAME-$1" 2>/dev/null || true
  grep -alF -- "$LAB_DIR/$1/containerd" /proc/[0-9]*/cmdline 2>/dev/null | cut -d/ -f3 || true
}

unmount_below() { # DIR
  local path
  awk -v below="$1/" 'index($2, below) == 1 {print $2}' /proc/mounts | sort -r | while read -r path; do umount -l "$path" || true; done
}

node_down() { # N
  local name=node$1 pid
  stop "$name-kubelet" "$name-proxy" "$name-kube-router" "$name-containerd"
  for pid in $(pod_processes "$name" | sort -u); do
    [ "$pid" = $$ ] || kill -KILL "$pid" 2>/dev/null || true
  done
  ip -n "$switch_ns" link del "to$1" 2>/dev/null || true
}

node_up() { # N
  local name=node$1
  [ -f "$LAB_DIR/pid/$name-kubelet" ] && { say "$name is up already"; return; }
  unmount_below "$LAB_DIR/$name/containerd-state"
  rm -rf "$LAB_DIR/$name/containerd-state"
  ip netns del "$LAB_NAME-$name" 2>/dev/null || true
  make_node_network "$1"
  start_node "$1"
  start_policy_engine "$1"
  await 60 "$name to be Ready" node_is_ready "$name"
}

node_is_ready() { [ "$(kubectl get node "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ]; }
