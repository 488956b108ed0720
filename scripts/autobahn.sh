#!/usr/bin/env bash
# The Autobahn|Testsuite (RFC 6455, RFC 7692) against a sidecar's bare mode, whose sender receives its own publication.
# CASES="1.* 7.9.*" runs these only. The report for people is target/autobahn/report/index.html.
# Fails on a case that did not run, and on one whose verdict is neither OK nor what scripts/autobahn.txt expects of it.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"
work=${CARGO_TARGET_DIR:-$root/target}/autobahn
suite=25.10.1
all='1.* 2.* 3.* 4.* 5.* 6.* 7.* 9.* 10.* 12.* 13.*'
count=517 # of all these

# The suite is written in Python 2.7, which Debian no longer has.
python27() {
  local candidate
  for candidate in "${PYTHON27:-}" python2.7 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/2.7.*/bin/python2.7; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (2, 7))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  die "Python 2.7 is missing: install it with pyenv (pyenv install 2.7.18), or name one in PYTHON27"
}

install_suite() {
  [ -e "$work/venv/$suite" ] && return
  local python; python=$(python27)
  need cc build-essential
  rm -rf "$work/venv" "$work/virtualenv"
  # Beside the interpreter, not in it: it may not be ours.
  "$python" -m pip install --quiet --disable-pip-version-check --target "$work/virtualenv" virtualenv==20.15.1 2>"$work/pip.log" &&
    PYTHONPATH=$work/virtualenv "$python" -m virtualenv --quiet "$work/venv" 2>>"$work/pip.log" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check "autobahntestsuite==$suite" 2>>"$work/pip.log" ||
    { tail -5 "$work/pip.log" >&2; die "pip could not install autobahntestsuite $suite (see above)"; }
  touch "$work/venv/$suite"
}

start_sidecar() {
  cat >"$work/boot.yaml" <<YAML
broker: {memory: {}}
listen: {client: '127.0.0.1:0', api: '127.0.0.1:0', admin: '127.0.0.1:0'}
YAML
  # Group 9 sends 16 MiB in one message, 12 and 13 up to 128 KiB a thousand times.
  cat >"$work/live.yaml" <<YAML
hub:
  maxMessageBytes: 16777216
  compression: {enabled: true, minBytes: 0}
  limits: {messagesPerSecond: 100000000, bytesPerSecond: 1000000000}
namespaces:
- name: default
  publish: allowed
  subscribe: allowed
  slowConsumer: {maxLagBytes: 268435456, maxLagMessages: 1000000}
  rateLimit: {publishesPerSecond: 1000000, burst: 1000000}
YAML
  "${CARGO_TARGET_DIR:-$root/target}/release/fanout-sidecar" run --config "$work/boot.yaml" --live "$work/live.yaml" \
    --log-format json >"$work/sidecar.log" 2>&1 &
  sidecar=$!
  trap 'kill "$sidecar" 2>/dev/null; wait "$sidecar" 2>/dev/null || true' EXIT
  local tries
  for ((tries = 0; tries < 100; tries++)); do
    address=$(jq -rn 'first(inputs | select(.message == "node is listening") | .client)' "$work/sidecar.log" 2>/dev/null || true)
    [ -n "$address" ] && return
    kill -0 "$sidecar" 2>/dev/null || break
    sleep 0.1
  done
  tail -5 "$work/sidecar.log" >&2
  die "the sidecar did not start (see above)"
}

run_suite() {
  rm -rf "$work/report"
  jq -n --arg cases "${CASES:-$all}" --arg url "ws://$address/ws/autobahn" --arg report "$work/report" '{
    outdir: $report, servers: [{agent: "fanout", url: $url}],
    cases: ($cases | split(" ")), "exclude-cases": [], "exclude-agent-cases": {}}' >"$work/client.json"
  "$work/venv/bin/wstest" --mode fuzzingclient --spec "$work/client.json" >"$work/suite.log" 2>&1 ||
    { tail -20 "$work/suite.log" >&2; die "the suite did not run to its end (see above)"; }
  kill -0 "$sidecar" 2>/dev/null || { tail -5 "$work/sidecar.log" >&2; die "the sidecar ended under the suite (see above)"; }
}

# A line for each group, then each case that nobody expected; fails if there is one.
verdict() {
  [ -n "${CASES:-}" ] && count=1
  jq -r --rawfile known "$root/scripts/autobahn.txt" --argjson count "$count" '
    # A case may be good and its close not, or the other way round: the worse counts. Unknown words are the worst.
    def badness: {OK: 0, INFORMATIONAL: 0, "NON-STRICT": 1, UNIMPLEMENTED: 2}[.] // 3;
    def worse: max_by(badness) | if badness == 0 then "OK" else . end;
    # The verdicts that a line of the list allows, by the case or the group that it begins with.
    ($known | split("\n") | map(select(test("^[0-9]")) | split(" ") | {name: first, allowed: .[1:]})) as $known
    | def allowed: . as $case
        | first($known[] | select(.name as $name | $case == $name or ($case | startswith($name + "."))) | .allowed) // ["OK"];
    [.fanout | to_entries[] | {case: .key, group: (.key | split(".")[0] | tonumber)} + (.value | {behavior, behaviorClose})
        | .verdict = ([.behavior, .behaviorClose] | worse)] as $cases
    | ($cases | map(select([.verdict] - (.case | allowed) != []))) as $wrong
    | ($cases | group_by(.group)[] | "group \(first.group): "
        + (group_by(.verdict) | map("\(length) \(first.verdict)") | join(", "))),
      ($wrong[] | "unexpected: case \(.case) \(.behavior), close \(.behaviorClose)"),
      if ($wrong | length) > 0 then "\($wrong | length) cases are not as they should be\n" | halt_error(1)
      elif ($cases | length) < $count then "only \($cases | length) of \($count) cases ran\n" | halt_error(1)
      else "\($cases | length) cases, none failed" end' "$work/report/index.json"
}

need_rust
need jq jq
mkdir -p "$work"
say "build"
# Groups 12 and 13 compress some hundred megabytes.
cargo build --locked --quiet --release -p fanout-sidecar
say "install Autobahn|Testsuite $suite"
install_suite
start_sidecar
say "run its cases (some minutes)"
run_suite
verdict
echo "report: $work/report/index.html"
