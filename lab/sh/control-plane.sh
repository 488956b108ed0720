# shellcheck shell=bash disable=SC2154,SC2034  # variables cross the parts; lab.sh sources them all
# etcd, kube-apiserver, kube-controller-manager and kube-scheduler in the switch's namespace. Sourced by lab.sh.

make_switch() {
  ip netns add "$switch_ns"
  ip -n "$switch_ns" link set lo up
  ip -n "$switch_ns" link add switch type bridge
  ip -n "$switch_ns" addr add "$control_plane_ip"/24 dev switch
  ip -n "$switch_ns" link set switch up
  ip -n "$switch_ns" route add default dev switch    # a service address needs a route before iptables rewrites it
  in_ns "$switch_ns" sysctl -qw net.ipv4.ip_forward=1
}

start_etcd() {
  start etcd "$switch_ns" etcd --data-dir "$LAB_DIR/etcd" --unsafe-no-fsync --listen-peer-urls http://127.0.0.1:2380 \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379
}

# The audit log is how tests count an operator's writes and find what RBAC refused it.
write_audit_policy() {
  cat >"$LAB_DIR/audit-policy.yaml" <<'YAML'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
  - {level: None, users: ["system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy", "system:apiserver", "kube-router", "metrics-server"]}
  - {level: None, userGroups: ["system:nodes", "system:serviceaccounts:kube-system", "system:masters"]}
  - {level: Metadata}
YAML
}

start_apiserver() {
  local pki=$LAB_DIR/pki
  write_audit_policy
  start kube-apiserver "$switch_ns" "$bin/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 \
    --advertise-address="$control_plane_ip" --tls-cert-file="$pki/api.crt" --tls-private-key-file="$pki/api.key" --client-ca-file="$pki/ca.crt" \
    --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
    --service-account-issuer=https://kubernetes.default.svc --service-cluster-ip-range=10.96.0.0/16 \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged \
    --kubelet-client-certificate="$pki/admin.crt" --kubelet-client-key="$pki/admin.key" --kubelet-certificate-authority="$pki/ca.crt" \
    --kubelet-preferred-address-types=InternalIP --enable-aggregator-routing \
    --requestheader-client-ca-file="$pki/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client \
    --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group --requestheader-username-headers=X-Remote-User \
    --proxy-client-cert-file="$pki/front-proxy.crt" --proxy-client-key-file="$pki/front-proxy.key" \
    --audit-policy-file="$LAB_DIR/audit-policy.yaml" --audit-log-path="$LAB_DIR/log/audit.log" --audit-log-mode=blocking
}

# An autoscaler that looks every 5 s and shrinks after 15 s instead of 5 min: a test sees both ways within a minute.
start_controllers() {
  start kube-controller-manager "$switch_ns" "$bin/kube-controller-manager" --kubeconfig "$LAB_DIR/controller-manager.kubeconfig" \
    --service-account-private-key-file="$LAB_DIR/pki/sa.key" --root-ca-file="$LAB_DIR/pki/ca.crt" --use-service-account-credentials \
    --leader-elect=false --node-monitor-grace-period=16s \
    --horizontal-pod-autoscaler-sync-period=5s --horizontal-pod-autoscaler-downscale-stabilization=15s \
    --horizontal-pod-autoscaler-cpu-initialization-period=10s --horizontal-pod-autoscaler-initial-readiness-delay=5s
  start kube-scheduler "$switch_ns" "$bin/kube-scheduler" --kubeconfig "$LAB_DIR/scheduler.kubeconfig" --leader-elect=false
}

start_control_plane() {
  start_etcd
  start_apiserver
  await 60 "the API server" kubectl get --raw /readyz
  start_controllers
}
