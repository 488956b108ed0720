#!/usr/bin/env bash
# fuzz.sh [TARGET...]: drives each fuzz target (all of fuzz/src/lib.rs by default) by libFuzzer for SECONDS_EACH (60).
# What is new goes to target/fuzz/corpus; MINIMIZE=1 then keeps in fuzz/corpus what reaches every part and no more.
# An input that fails is written to target/fuzz/artifacts: mend the code, and add the input to fuzz/corpus.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"
work=${CARGO_TARGET_DIR:-$root/target}/fuzz
seconds=${SECONDS_EACH:-60}
need_rust
need c++ build-essential

# The compiler's own coverage pass, as cargo-fuzz sets it; no sanitizer, for there is no unsafe code, so the pinned
# toolchain does. Debug assertions and overflow checks are on.
host=$(rustc -vV | sed -n 's/^host: //p')
flags=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions
  --cfg fuzzing)
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=2
say "build"
RUSTFLAGS="${flags[*]}" cargo build --locked --quiet --release --target "$host" --target-dir "$work" -p fanout-fuzz --features libfuzzer
fuzzer=$work/$host/release/fanout-fuzz

[ $# -gt 0 ] || mapfile -t targets < <(sed -n 's/^    ("\([a-z_0-9]*\)", .*/\1/p' fuzz/src/lib.rs)
[ $# -gt 0 ] && targets=("$@")
failed=0
for target in "${targets[@]}"; do
  mkdir -p "$work/corpus/$target" "$work/artifacts/$target" "fuzz/corpus/$target"
  export FANOUT_FUZZ_TARGET=$target
  log=$work/$target.log
  if "$fuzzer" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=4096 -print_final_stats=1 -verbosity=1 \
    -artifact_prefix="$work/artifacts/$target/" "$work/corpus/$target" "fuzz/corpus/$target" >"$log" 2>&1; then
    printf '%-14s %s executions, %s edges\n' "$target" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
      "$(grep -o 'cov: [0-9]*' "$log" | tail -1 | cut -d' ' -f2)"
  else
    failed=1
    tail -30 "$log" >&2
    echo "$target: FAILED, the input is in $work/artifacts/$target"
  fi
  if [ -n "${MINIMIZE:-}" ]; then
    rm -rf "$work/least" && mkdir "$work/least"
    "$fuzzer" -set_cover_merge=1 -max_len=4096 "$work/least" "fuzz/corpus/$target" "$work/corpus/$target" >"$log" 2>&1
    rm -rf "fuzz/corpus/$target" && mv "$work/least" "fuzz/corpus/$target"
  fi
done
exit $failed
