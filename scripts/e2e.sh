#!/usr/bin/env bash
# Brings the lab up with the images loaded, runs the end-to-end tests in it and takes it down again; with
# KUBECONFIG set, runs them against that cluster instead. Arguments go to nextest, as `-E 'test(scale)'`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"
need_rust
scripts/tools.sh
# Of the whole workspace: the dependencies are then those that the other tests were built with.
build=(cargo nextest run --workspace --test e2e --locked)
run=("${build[@]}" --no-fail-fast --test-threads 4 "$@")
if [ -n "${KUBECONFIG:-}" ]; then exec "${run[@]}"; fi
[ "$(uname -s)" = Linux ] && [ "$(id -u)" = 0 ] || die "the lab needs Linux and root: set KUBECONFIG to a cluster of yours instead"
lab/lab.sh build
images/build.sh
"${build[@]}" --no-run
if ! lab/lab.sh status >/dev/null 2>&1; then
  lab/lab.sh up
  trap 'lab/lab.sh down' EXIT
  lab/lab.sh load target/images/*.tar
fi
lab/lab.sh exec "${run[@]}"
