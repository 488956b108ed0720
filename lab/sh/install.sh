# shellcheck shell=bash disable=SC2154,SC2034  # variables cross the parts; lab.sh sources them all
# Debian packages the lab runs on. Sourced by lab.sh.

missing_tools() {
  local tool
  for tool in etcd containerd runc buildah iptables ipset ip conntrack openssl gcc redis-server redis-cli; do
    command -v "$tool" >/dev/null || echo "$tool"
  done
  [ -x /usr/lib/cni/bridge ] || echo cni-plugins
  ldd "$(command -v busybox)" >/dev/null 2>&1 || echo busybox    # the static one cannot resolve names
}

install_packages() {
  local missing
  missing=$(missing_tools | tr '\n' ' ')
  [ -z "$missing" ] && return
  require_root
  command -v apt-get >/dev/null || fail "missing: ${missing}— install them with your package manager (names of Debian's packages are in lab/sh/install.sh)"
  say "installing Debian packages for: $missing"
  apt-get -o DPkg::Lock::Timeout=300 update -qq
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends \
    etcd-server containerd runc containernetworking-plugins buildah iptables ipset iproute2 conntrack openssl \
    gcc libc6-dev binutils ca-certificates redis-server busybox >/dev/null
}
