# shellcheck shell=bash disable=SC2154,SC2034  # variables cross the parts; lab.sh sources them all
# Images without an engine and without a registry: buildah on vfs in a chroot, containerd's import. Sourced by lab.sh.

buildah_lab() { buildah --root "$LAB_CACHE/images" --runroot "$LAB_CACHE/images-run" --storage-driver vfs "$@"; }

# archive_image NAME DIR TAR: builds DIR/Dockerfile as NAME into the docker-archive TAR.
archive_image() {
  local name=$1 dir=$2 tar=$3 id
  id=$(buildah_lab bud -q --isolation chroot --layers=false --timestamp 0 "$dir")
  rm -f "$tar"
  buildah_lab push -q "$id" "docker-archive:$tar:$name"
  buildah_lab rmi -f "$id" >/dev/null
}

load_images() {
  local tar node pids=() pid
  for tar in "$@"; do [ -f "$tar" ] || fail "no such image archive: $tar"; done
  for node in $(node_names); do
    [ -f "$LAB_DIR/pid/$node-containerd" ] || continue
    (for tar in "$@"; do ctr -a "$LAB_DIR/$node/containerd.sock" -n k8s.io images import "$tar" >/dev/null; done) &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid"; done
}

build_and_load_image() {
  [ $# = 2 ] || fail "usage: lab.sh image NAME DIR"
  local tar; tar=$(mktemp "$LAB_DIR/image.XXXXXX")
  archive_image "$1" "$2" "$tar"
  load_images "$tar"
  rm -f "$tar"
}

# The pod sandbox: holds the namespaces, reaps, leaves at SIGTERM.
build_pause_image() {
  [ -f "$LAB_CACHE/pause.tar" ] && return
  local dir; dir=$(mktemp -d)
  gcc -static -O2 -o "$dir/pause" "$here/pause.c"
  printf 'FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n' >"$dir/Dockerfile"
  archive_image fanout.lab/pause:1 "$dir" "$LAB_CACHE/pause.tar.part"
  mv "$LAB_CACHE/pause.tar.part" "$LAB_CACHE/pause.tar"
  rm -rf "$dir"
}
