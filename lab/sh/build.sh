# shellcheck shell=bash disable=SC2154,SC2034  # variables cross the parts; lab.sh sources them all
# The cluster's binaries, each group from a Go module that pins it; a stamp beside a binary says what made it. Sourced by lab.sh.

kube_version() { awk '$1 == "k8s.io/kubernetes" {print $2}' "$here/kube/go.mod"; }

kube_ldflags() {
  local version minor; version=$(kube_version) minor=${version#v1.} minor=${minor%%.*}
  local package=k8s.io/component-base/version
  echo "-s -w -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor"
}

# One module for all that is made of the API machinery, so that each package is compiled once; Helm has a newer one.
declare -A packages_of=(
  [kube]="k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kube-controller-manager k8s.io/kubernetes/cmd/kube-scheduler
    k8s.io/kubernetes/cmd/kubelet k8s.io/kubernetes/cmd/kube-proxy k8s.io/kubernetes/cmd/kubectl
    sigs.k8s.io/metrics-server/cmd/metrics-server fanout.dev/lab/kube/cmd/coredns fanout.dev/lab/kube/cmd/kube-router"
  [helm]="helm.sh/helm/v4/cmd/helm"
)
groups=(kube helm)

stamp_of() { # GROUP: changes when the pins, the flags or the compiler change
  { go version; kube_ldflags; echo "${packages_of[$1]}"; find "$here/$1" -type f | sort | xargs cat; } | sha256sum | cut -d' ' -f1
}

is_built() { # GROUP
  local package
  for package in ${packages_of[$1]}; do [ -x "$bin/$(basename "$package")" ] || return 1; done
  [ "$(cat "$bin/.$1.stamp" 2>/dev/null)" = "$(stamp_of "$1")" ]
}

build_group() { # GROUP
  local group=$1 began=$SECONDS
  say "building $group ..."
  # shellcheck disable=SC2086 # a list of packages
  (cd "$here/$group" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$(kube_ldflags)" -o "$bin/" ${packages_of[$group]})
  stamp_of "$group" >"$bin/.$group.stamp"
  say "built $group in $((SECONDS - began)) s"
}

build_binaries() { # [GROUP...]
  local group
  command -v go >/dev/null || fail "the lab builds Kubernetes from its Go modules and needs Go >= 1.26 (https://go.dev/dl)"
  mkdir -p "$bin"
  [ $# -gt 0 ] || set -- "${groups[@]}"
  for group in "$@"; do
    [ -n "${packages_of[$group]:-}" ] || fail "unknown group '$group'; there are: ${groups[*]}"
    is_built "$group" || build_group "$group"
  done
}
