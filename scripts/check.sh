#!/usr/bin/env bash
# check.sh [STEP...]: everything that needs no running thing. Each step prints one line and, if it fails, why.
# With FANOUT_COUNTS set to a file, each step adds `passed` or `failed` to it.
set -uo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root" || exit 1
steps=(fmt clippy rustdoc deny shellcheck workflows generated chart)

fmt() { cargo fmt --all --check; }
clippy() { cargo clippy --workspace --all-targets --locked -- -D warnings; }
rustdoc() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --document-private-items; }
deny() { scripts/tools.sh && cargo deny --all-features check bans licenses sources; }
shellcheck_step() {
  need shellcheck shellcheck
  git ls-files -co --exclude-standard -- '*.sh' .ci/run | xargs shellcheck
}
workflows() { # GitHub's, and the shell in them
  need_go && need shellcheck shellcheck
  go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
}
generated() { # what the code generates is what the repository holds
  local work file status=0; work=$(mktemp -d)
  scripts/generate.sh "$work" || status=1
  while read -r file; do
    diff -u "$file" "$work/$file" || { echo "$file is stale: run \`make crds\`"; status=1; }
  done < <(cd "$work" && find . -type f | sed 's|^\./||')
  rm -rf "$work"
  return "$status"
}
chart() { need_helm && scripts/chart.sh; }

failed=0
[ $# -gt 0 ] && steps=("$@")
log=$(mktemp)
trap 'rm -f "$log"' EXIT
need_rust
for step in "${steps[@]}"; do
  started=$SECONDS
  run=$step; [ "$step" = shellcheck ] && run=shellcheck_step
  if "$run" >"$log" 2>&1; then
    result=passed; echo "passed   $step ($((SECONDS - started)) s)"
  else
    result=failed; failed=1; cat "$log"; echo "failed   $step ($((SECONDS - started)) s)"
  fi
  [ -n "${FANOUT_COUNTS:-}" ] && echo "$result" >>"$FANOUT_COUNTS"
done
exit $failed
