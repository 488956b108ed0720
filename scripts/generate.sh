#!/usr/bin/env bash
# generate.sh [DIR]: writes every generated file under DIR, the repository itself by default.
# FANOUT_PACKAGES: what cargo builds; all where all are built anyway, for another choice builds dependencies anew.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
out=${1:-$root}
need_rust
cd "$root"
# shellcheck disable=SC2086 # words
cargo build --quiet ${FANOUT_PACKAGES:--p fanout-operator -p fanout-sidecar} --bins
bin=${CARGO_TARGET_DIR:-$root/target}/debug
mkdir -p "$out/charts/fanout/crd" "$out/docs/schema"
# crds/ links to it.
"$bin/fanout-operator" crd >"$out/charts/fanout/crd/fanoutclusters.fanout.dev.yaml"
"$bin/fanout-sidecar" protocol >"$out/docs/protocol.md"
for document in boot live; do "$bin/fanout-sidecar" schema "$document" >"$out/docs/schema/$document.json"; done
"$bin/fanout-sidecar" schema api >"$out/docs/openapi.json"
