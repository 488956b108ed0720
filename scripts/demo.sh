#!/usr/bin/env bash
# Builds and starts three nodes and a playground page; with CHECK=1 checks delivery by itself and ends.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"
need_rust
command -v valkey-server >/dev/null || need redis-server redis-server
command -v valkey-cli >/dev/null || need redis-cli redis-tools
# shellcheck disable=SC2086 # words; all packages where all are built anyway
cargo build --locked --quiet ${FANOUT_PACKAGES:--p fanout-sidecar -p kubectl-fanout} --bins
bin=${CARGO_TARGET_DIR:-$root/target}/debug
if [ -n "${CHECK:-}" ]; then set -- --check "$@"; fi
exec "$bin/kubectl-fanout" dev -f "${FILE:-examples/quickstart.yaml}" "$@"
