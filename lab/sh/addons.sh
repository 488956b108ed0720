# shellcheck shell=bash disable=SC2154,SC2034  # variables cross the parts; lab.sh sources them all
# Cluster DNS, resource metrics and storage. They run beside the control plane, behind Services without a selector. Sourced by lab.sh.

start_dns() {
  cat >"$LAB_DIR/Corefile" <<EOT
.:5353 {
  errors
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $LAB_DIR/admin.kubeconfig
    ttl 1
  }
  template ANY ANY {
    rcode NXDOMAIN
  }
}
EOT
  start coredns "$switch_ns" "$bin/coredns" -conf "$LAB_DIR/Corefile"
  kubectl apply -f "$here/manifests/dns.yaml" >/dev/null
}

start_metrics_server() {
  local pki=$LAB_DIR/pki config=$LAB_DIR/metrics-server.kubeconfig
  start metrics-server "$switch_ns" "$bin/metrics-server" --kubeconfig "$config" --authentication-kubeconfig "$config" --authorization-kubeconfig "$config" \
    --secure-port=4443 --tls-cert-file="$pki/metrics-server-serving.crt" --tls-private-key-file="$pki/metrics-server-serving.key" \
    --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP --metric-resolution=10s --kubelet-request-timeout=5s
  sed "s|CA_BUNDLE|$(base64 -w0 "$pki/ca.crt")|" "$here/manifests/metrics-server.yaml" | kubectl apply -f - >/dev/null
}

# There is no provisioner: a default class and a shelf of volumes on the machine's disk, usable by any user id.
make_volumes() {
  local count=${1:-24} i path
  kubectl apply -f "$here/manifests/storage.yaml" >/dev/null
  for ((i = 1; i <= count; i++)); do
    path=$LAB_DIR/volumes/$i
    mkdir -p "$path" && chmod 0777 "$path"
    printf -- '---\napiVersion: v1\nkind: PersistentVolume\nmetadata: {name: lab-%s}\nspec: {storageClassName: lab, capacity: {storage: 10Gi}, accessModes: [ReadWriteOnce], persistentVolumeReclaimPolicy: Retain, hostPath: {path: %s}}\n' "$i" "$path"
  done | kubectl apply -f - >/dev/null
}
