#!/usr/bin/env bash
# bench.sh [OPTION...]: builds what is compared and runs the bench. Options go to `fanout-bench run`; FANOUT_BENCH_ALONE=1
# leaves the peers out. A peer that cannot be built here is reported as absent by the bench.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"
need_rust
need taskset util-linux
command -v valkey-server >/dev/null || need redis-server redis-server
target=${CARGO_TARGET_DIR:-$root/target}
log=$target/bench/build.log
peers=$target/bench/peers
mkdir -p "$peers"

say "building the sidecar and the bench"
cargo build --locked --release -p fanout-sidecar -p fanout-bench

# peer NAME COMMAND...: builds one, or says that it stays out.
peer() {
  local name=$1; shift
  "$@" >"$log" 2>&1 || { echo "$name could not be built, it will be absent:"; tail -3 "$log"; }
}
go_peers() { (cd bench/peers/go && CGO_ENABLED=0 go build -o "$peers/" ./...); }
node_peers() { (cd bench/peers/node && { [ -e node_modules/ws ] || npm ci --no-audit --no-fund --ignore-scripts; }); }
socketioxide() {
  cargo build --locked --release --manifest-path bench/peers/socketioxide/Cargo.toml --target-dir "$target/bench/socketioxide" &&
    cp "$target/bench/socketioxide/release/fanout-bench-socketioxide" "$peers/socketioxide"
}
nchan() { (need nginx nginx-light && [ -e /usr/lib/nginx/modules/ngx_nchan_module.so ] || apt_install libnginx-mod-nchan); }

only=()
if [ -n "${FANOUT_BENCH_ALONE:-}" ]; then
  only=(--only bare)
else
  say "building the peers"
  peer "Go peers" go_peers
  peer "Node peers" node_peers
  peer socketioxide socketioxide
  peer Nchan nchan
fi
say "measuring"
"$target/release/fanout-bench" run --sidecar "$target/release/fanout-sidecar" --peer-binaries "$peers" \
  --out "$target/bench/results.json" "${only[@]}" "$@"
"$target/release/fanout-bench" page --results "$target/bench/results.json" --out "$target/bench/page"
echo "plots: $target/bench/page/benchmarks.md"
