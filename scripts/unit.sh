#!/usr/bin/env bash
# The tests that need no cluster. Arguments go to nextest, as `-p fanout-sidecar`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"
need_rust
need_go
command -v valkey-server >/dev/null || need redis-server redis-server
need redis-cli redis-tools
need chromium chromium
need nginx nginx
need haproxy haproxy
need prometheus prometheus
need_venv
scripts/tools.sh
cargo build --workspace --bins --locked --quiet
[ $# -gt 0 ] || set -- --workspace --exclude fanout-e2e
exec cargo nextest run --locked "$@"
