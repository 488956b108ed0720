#!/usr/bin/env bash
# Brings the lab up with the images loaded, runs the end-to-end tests in it and takes it down again; with
# KUBECONFIG set, runs them against that cluster instead. Arguments go to nextest, as `-E 'test(scale)'`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"
need_rust
scripts/tools.sh
# Of the whole workspace: the dependencies are then those that the other tests were built with. `cel` are the tests of
# the CRD's rules, which ask a library elsewhere and here the API server.
build=(cargo nextest run --workspace --test e2e --test cel --locked)
# `kubectl fanout`, which a test runs.
cli=(cargo build --workspace --bin kubectl-fanout --locked)
run=("${build[@]}" --no-fail-fast --test-threads 4 "$@")
rules=fanout-rules

# tests [PREFIX...]: all of them, PREFIX before each command that must reach the cluster.
tests() {
  local status=0
  # The rules need the CRD; the end-to-end tests upgrade what they find installed.
  "$@" helm upgrade fanout charts/fanout --install --namespace fanout-system --create-namespace >/dev/null
  "$@" kubectl get namespace "$rules" >/dev/null 2>&1 || "$@" kubectl create namespace "$rules" >/dev/null
  FANOUT_CEL_KUBECTL="kubectl --namespace $rules" "$@" "${run[@]}" || status=$?
  "$@" kubectl delete namespace "$rules" --wait=false >/dev/null
  return "$status"
}

if [ -n "${KUBECONFIG:-}" ]; then
  need_helm
  echo "skipped: tests named lab_…, which need the lab's audit log or its containerd"
  run+=(--profile another-cluster)
  "${cli[@]}"
  tests
  exit
fi
[ "$(uname -s)" = Linux ] && [ "$(id -u)" = 0 ] || die "the lab needs Linux and root: set KUBECONFIG to a cluster of yours instead"
lab/lab.sh build
images/build.sh
"${build[@]}" --no-run
"${cli[@]}"
if ! lab/lab.sh status >/dev/null 2>&1; then
  lab/lab.sh up
  trap 'lab/lab.sh down' EXIT
  lab/lab.sh load target/images/*.tar
fi
tests lab/lab.sh exec
