#!/usr/bin/env bash
# All tests, what they need installed first. Prints the time of each part and, as its last line,
# `N passed, N failed, N skipped`. Ends non-zero if anything failed or, with CI=true, was skipped.
set -uo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root" || exit 1
work=$(mktemp -d)
export FANOUT_COUNTS=$work/counts FANOUT_PACKAGES=--workspace CARGO_TERM_COLOR=never NO_COLOR=1
[ -n "${CI:-}" ] && export CARGO_INCREMENTAL=0
: >"$FANOUT_COUNTS"
times=()
lab_pid=

finish() {
  [ -n "$lab_pid" ] && kill -TERM -- "-$lab_pid" 2>/dev/null
  rm -rf "$work"
}
trap finish EXIT

count() { local i; for ((i = 0; i < $1; i++)); do echo "$2"; done >>"$FANOUT_COUNTS"; }
skip() { echo "skipped: $1"; count 1 skipped; }

# part NAME COMMAND...: times it; a part that fails without having counted a failure counts as one.
part() {
  local name=$1 started=$SECONDS before; shift
  say "$name"
  before=$(grep -c failed "$FANOUT_COUNTS")
  if ! "$@"; then
    [ "$(grep -c failed "$FANOUT_COUNTS")" -gt "$before" ] || count 1 failed
    echo "FAILED: $name"
  fi
  times+=("$(printf '%6d s  %s' $((SECONDS - started)) "$name")")
}

prepare() ( # a subshell: what is missing ends this part, not the whole run
  need_rust
  need redis-server redis-server && need redis-cli redis-tools && need shellcheck shellcheck
  need chromium chromium && need nginx nginx-light && need haproxy haproxy && need prometheus prometheus && need openssl openssl && need curl curl && need_venv
  scripts/tools.sh && cargo fetch --locked --quiet
)

# The Kubernetes binaries build beside everything else, at a lower priority: the Rust builds are on the
# critical path, the lab is needed only at the end.
can_lab() { [ "$(uname -s)" = Linux ] && [ "$(id -u)" = 0 ]; }
lab_build_start() {
  can_lab || { echo "no lab here: it needs Linux and root"; return 0; }
  (need_go) || return 1
  set -m
  nice -n 10 lab/lab.sh build >"$work/lab.log" 2>&1 </dev/null &
  lab_pid=$!
  set +m
}
lab_build_wait() {
  [ -n "$lab_pid" ] || { skip "the lab's binaries"; return 0; }
  wait "$lab_pid"; local status=$?
  lab_pid=
  [ "$status" = 0 ] || { tail -40 "$work/lab.log"; return 1; }
}

# nextest PART ARG...: runs tests, counts by the summary line.
nextest() {
  local log=$work/nextest.log status summary
  "$@" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  summary=$(grep -E '^ *Summary \[' "$log" | tail -1)
  count "$(of "$summary" passed)" passed
  count $(($(of "$summary" failed) + $(of "$summary" "timed out") + $(of "$summary" "exec failed"))) failed
  count "$(of "$summary" skipped)" skipped
  return "$status"
}
of() { grep -oE "[0-9]+ $2" <<<"$1" | grep -oE '[0-9]+' || echo 0; }

build() { cargo build --workspace --bins --locked --quiet; }
unit() { nextest cargo nextest run --workspace --exclude fanout-e2e --locked --no-fail-fast --status-level fail --final-status-level slow; }
doc_tests() {
  local log=$work/doc.log status line
  cargo test --workspace --doc --locked >"$log" 2>&1; status=$?
  [ "$status" = 0 ] || cat "$log"
  while read -r line; do
    count "$(of "$line" passed)" passed; count "$(of "$line" failed)" failed; count "$(of "$line" ignored)" skipped
  done < <(grep '^test result:' "$log")
  return "$status"
}
demo() { CHECK=1 timeout 120 scripts/demo.sh && count 1 passed; }
# While the Go builds still run: a core that waits for a linker compiles.
images() { [ -n "${KUBECONFIG:-}" ] || ! can_lab || images/build.sh; }
e2e() {
  [ -n "${KUBECONFIG:-}" ] || can_lab || { skip "end-to-end tests: they need Linux and root for the lab, or KUBECONFIG"; return 0; }
  nextest timeout 2400 scripts/e2e.sh
}

part "prepare: packages and tools" prepare
part "lab: start the Go builds in the background" lab_build_start
part "check, but for the chart" scripts/check.sh fmt shellcheck workflows clippy rustdoc deny generated
part "build" build
part "unit and integration tests" unit
part "documentation tests" doc_tests
part "demo" demo
part "images" images
part "lab: wait for the Go builds" lab_build_wait
part "chart" scripts/check.sh chart
part "end-to-end tests on the lab" e2e

say "time of each part"
printf '%s\n' "${times[@]}"
echo "total $SECONDS s"
passed=$(grep -c passed "$FANOUT_COUNTS")
failed=$(grep -c failed "$FANOUT_COUNTS")
skipped=$(grep -c skipped "$FANOUT_COUNTS")
status=0
[ "$failed" = 0 ] || status=1
[ "$passed" -gt 0 ] || status=1
if [ "${CI:-}" = true ] && [ "$skipped" != 0 ]; then echo "CI=true: a skipped test is a failure"; status=1; fi
echo "$passed passed, $failed failed, $skipped skipped"
exit $status
