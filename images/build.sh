#!/usr/bin/env bash
# Builds the images as docker-archives under target/images/, offline, and loads them into a lab that is up.
#
#   images/build.sh [NAME...]     fanout-sidecar fanout-operator kubectl-fanout redis; default: all
#
# IMAGE_PREFIX   registry and path, default ghcr.io/fanout-dev: what the chart and the CR default to
# IMAGE_TAG      default: the workspace's version
# IMAGE_PROFILE  cargo profile of the binaries, default release; `dev` for a quick loop
# REDIS_IMAGE    name of the lab's Redis, default docker.io/library/redis:7.2-alpine: what a managed Redis defaults to
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

LAB_CACHE=${LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fanout-lab}
LAB_NAME=${LAB_NAME:-fanout}
LAB_DIR=${LAB_DIR:-/run/$LAB_NAME-lab}
for part in common install image; do
  # shellcheck source=/dev/null
  source "$root/lab/sh/$part.sh"
done

prefix=${IMAGE_PREFIX:-ghcr.io/fanout-dev}
tag=${IMAGE_TAG:-$(awk -F'"' '/^\[workspace.package\]/ {in_package = 1} in_package && /^version/ {print $2; exit}' Cargo.toml)}
profile=${IMAGE_PROFILE:-release}
redis_image=${REDIS_IMAGE:-docker.io/library/redis:7.2-alpine}
target=$(uname -m)-unknown-linux-gnu
out=$root/target/images
all=(fanout-sidecar fanout-operator kubectl-fanout redis)

# A static binary on the gnu target: it resolves cluster names in a FROM scratch pod, and needs no musl.
build_binaries() { # BINARY...
  local binary packages=()
  for binary in "$@"; do packages+=(-p "$binary"); done
  # Binaries and panics name the sources, not where this machine has them. Where rust-src is installed, those of the
  # standard library too.
  local cargo_home=${CARGO_HOME:-$HOME/.cargo} sources
  sources=$(rustc --print sysroot)/lib/rustlib/src/rust
  RUSTFLAGS="${RUSTFLAGS:-} -C force-frame-pointers=yes -C target-feature=+crt-static \
    --remap-path-prefix=$root=/fanout --remap-path-prefix=$cargo_home=/cargo --remap-path-prefix=$sources=/rustc" \
    cargo build --locked --profile "$profile" --target "$target" --bins "${packages[@]}"
}

binary_path() { local dir=$profile; [ "$profile" = dev ] && dir=debug; echo "$root/target/$target/$dir/$1"; }

binary_context() { # BINARY DIR
  cp "images/$1/Dockerfile" /etc/ssl/certs/ca-certificates.crt "$2/"
  local strip=--strip-all
  # The names of its functions stay: a profile taken in a pod shows them.
  [ "$1" = fanout-sidecar ] && strip=--strip-debug
  strip "$strip" -o "$2/$1" "$(binary_path "$1")"
  "$2/$1" --help >/dev/null || fail "$1 was built, but does not start"
}

redis_context() { # DIR
  local rootfs=$1/rootfs program applet
  cp images/redis/Dockerfile "$1/"
  mkdir -p "$rootfs"/{bin,usr/bin,usr/local/bin,data,tmp,etc/ssl/certs}
  for program in redis-server redis-cli busybox; do
    cp -L "$(command -v "$program")" "$rootfs/usr/local/bin/$program"
    ldd "$(command -v "$program")" | grep -o '/[^ ]*' | while read -r library; do install -D "$library" "$rootfs$library"; done
  done
  for applet in sh ash awk cat chmod chown cp date dd echo env false find grep head httpd id kill ls mkdir nc nslookup pidof ps rm sed sleep stat tail test timeout touch tr true wc wget yes; do
    ln -s /usr/local/bin/busybox "$rootfs/bin/$applet"
  done
  printf 'root:x:0:0:root:/:/bin/sh\nredis:x:999:999:redis:/data:/bin/sh\n' >"$rootfs/etc/passwd"
  printf 'root:x:0:\nredis:x:999:\n' >"$rootfs/etc/group"
  cp /etc/ssl/certs/ca-certificates.crt "$rootfs/etc/ssl/certs/"
  chown 999:999 "$rootfs/data"
  chmod 1777 "$rootfs/tmp"
}

image_name() { if [ "$1" = redis ]; then echo "$redis_image"; else echo "$prefix/$1:$tag"; fi; }

build_image() { # NAME
  local dir archive=$out/$1.tar name; dir=$(mktemp -d) name=$(image_name "$1")
  if [ "$1" = redis ]; then redis_context "$dir"; else binary_context "$1" "$dir"; fi
  archive_image "$name" "$dir" "$archive"
  rm -rf "$dir"
  printf '%-48s %7.1f MB  %s\n' "$name" "$(stat -c %s "$archive" | awk '{print $1 / 1e6}')" "${archive#"$root"/}"
}

[ $# -gt 0 ] || set -- "${all[@]}"
require_root
install_packages
mkdir -p "$out" "$LAB_CACHE"

binaries=()
for name in "$@"; do
  [ -f "images/$name/Dockerfile" ] || fail "unknown image '$name'; there are: ${all[*]}"
  [ "$name" = redis ] || binaries+=("$name")
done
[ ${#binaries[@]} = 0 ] || build_binaries "${binaries[@]}"
for name in "$@"; do build_image "$name"; done
if is_up; then
  archives=("${@/#/$out/}")
  load_images "${archives[@]/%/.tar}"
  say "loaded into the running lab"
fi
