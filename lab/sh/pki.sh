# shellcheck shell=bash disable=SC2154,SC2034  # variables cross the parts; lab.sh sources them all
# Keys, certificates and kubeconfigs, good for 30 days, made anew at each `up`. Sourced by lab.sh.

new_key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)

authority() { # NAME
  openssl req -x509 "${new_key[@]}" -keyout "$LAB_DIR/pki/$1.key" -out "$LAB_DIR/pki/$1.crt" -days 30 -subj "/CN=$1" 2>/dev/null
}

# An extension makes it X.509 v3: rustls takes no v1.
certificate() { # NAME AUTHORITY SUBJECT [SUBJECT_ALT_NAMES]
  local path=$LAB_DIR/pki/$1 ca=$LAB_DIR/pki/$2
  openssl req "${new_key[@]}" -keyout "$path.key" -out "$path.csr" -subj "$3" 2>/dev/null
  openssl x509 -req -in "$path.csr" -CA "$ca.crt" -CAkey "$ca.key" -CAcreateserial -days 30 \
    -extfile <(printf 'basicConstraints=CA:FALSE\n%s' "${4:+subjectAltName=$4}") -out "$path.crt" 2>/dev/null
}

kubeconfig() { # NAME SUBJECT: a client certificate and a kubeconfig that uses it
  local pki=$LAB_DIR/pki
  certificate "$1" ca "$2"
  cat >"$LAB_DIR/$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://$control_plane_ip:6443", certificate-authority: $pki/ca.crt}}]
users: [{name: user, user: {client-certificate: $pki/$1.crt, client-key: $pki/$1.key}}]
contexts: [{name: lab, context: {cluster: lab, user: user}}]
current-context: lab
YAML
}

make_pki() {
  local pki=$LAB_DIR/pki
  openssl genrsa -out "$pki/sa.key" 2048 2>/dev/null
  openssl rsa -in "$pki/sa.key" -pubout -out "$pki/sa.pub" 2>/dev/null
  authority ca
  authority front-proxy-ca     # vouches for identities that the API server passes on to metrics-server
  certificate api ca /CN=kube-apiserver \
    "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:$control_plane_ip,IP:10.96.0.1"
  certificate front-proxy front-proxy-ca /CN=front-proxy-client
  certificate metrics-server-serving ca /CN=metrics-server "DNS:metrics-server.kube-system.svc,IP:$control_plane_ip"
  kubeconfig admin /O=system:masters/CN=admin
  kubeconfig controller-manager /CN=system:kube-controller-manager
  kubeconfig scheduler /CN=system:kube-scheduler
  kubeconfig proxy /CN=system:kube-proxy
  kubeconfig kube-router /O=system:masters/CN=kube-router
  kubeconfig metrics-server /O=system:masters/CN=metrics-server
}
