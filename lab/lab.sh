#!/usr/bin/env bash
# A real Kubernetes cluster on one Linux machine, as root, without a container engine or a registry.
#
#   lab.sh install            Debian packages: etcd, containerd, runc, CNI plugins, buildah, iptables, ipset
#   lab.sh build [NAME...]    the cluster's binaries from their pinned Go modules; what is built is skipped
#   lab.sh up [NODES]         start NODES nodes (default 2), wait until all are Ready
#   lab.sh down               stop everything that `up` started and remove its namespaces and files
#   lab.sh status             nodes, processes, memory
#   lab.sh logs [NAME [N]]    list the logs, or print the last N lines (default 50) of one
#   lab.sh load TAR...        import docker-archive images on every node
#   lab.sh image NAME DIR     build DIR/Dockerfile offline as NAME and load it
#   lab.sh exec CMD...        run CMD where the cluster's addresses are reachable, KUBECONFIG and PATH set
#   lab.sh kubectl ARGS...    the same for kubectl; `lab.sh helm ARGS...` for helm
#   lab.sh node-down N        kill Kubernetes node N with every process on it, as a power cut would
#   lab.sh node-up N          boot it again
#   lab.sh env                print LAB_DIR, LAB_CACHE and KUBECONFIG as shell assignments
#
# LAB_CACHE (default ~/.cache/fanout-lab) keeps what is built, LAB_DIR (default /run/fanout-lab) what runs. Another
# LAB_NAME than `fanout` is another cluster on the same machine; their addresses are the same and never meet.
# Every address lives in network namespaces that this script makes: `fanout-lab` is the control plane and the
# switch, `fanout-node1…` are the nodes. 10.240.0.0/24 nodes, 10.244.N.0/24 pods of node N, 10.96.0.0/16 services.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
LAB_CACHE=${LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fanout-lab}
LAB_NAME=${LAB_NAME:-fanout}
LAB_DIR=${LAB_DIR:-/run/$LAB_NAME-lab}

for part in common install build image pki control-plane node addons cluster; do
  # shellcheck source=/dev/null
  source "$here/sh/$part.sh"
done

command=${1:-help}
[ $# -gt 0 ] && shift
case $command in
  install) install_packages ;;
  build) build_binaries "$@" ;;
  up) cluster_up "$@" ;;
  down) cluster_down ;;
  status) cluster_status ;;
  logs) show_logs "$@" ;;
  load) require_up && load_images "$@" ;;
  image) require_up && build_and_load_image "$@" ;;
  exec) require_up && enter "$@" ;;
  kubectl | helm) require_up && enter "$command" "$@" ;;
  node-down) require_up && require_node "$@" && node_down "$1" ;;
  node-up) require_up && require_node "$@" && node_up "$1" ;;
  env) printf 'LAB_DIR=%q\nLAB_CACHE=%q\nKUBECONFIG=%q\n' "$LAB_DIR" "$LAB_CACHE" "$LAB_DIR/admin.kubeconfig" ;;
  help | -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$here/lab.sh" ;;
  *) fail "unknown command '$command'; 'lab.sh help' lists them" ;;
esac
