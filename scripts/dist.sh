#!/usr/bin/env bash
# Builds what a release of this machine's architecture holds, under target/dist/: static binaries as tar.gz, the image
# archives, a CycloneDX SBOM for each binary and, with --chart, the chart. It publishes nothing.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"
need_rust
need_helm
out=$root/target/dist
arch=$(uname -m)
binaries=(fanout-sidecar fanout-operator kubectl-fanout)
version=$(awk -F'"' '/^\[workspace.package\]/ {in_package = 1} in_package && /^version/ {print $2; exit}' Cargo.toml)
chart=$(awk '$1 == "version:" {print $2}' charts/fanout/Chart.yaml)
app=$(awk '$1 == "appVersion:" {print $2}' charts/fanout/Chart.yaml)
[ "$chart" = "$version" ] && [ "$app" = "$version" ] ||
  die "Cargo.toml is version $version, charts/fanout/Chart.yaml $chart with appVersion $app: make them one"

rm -rf "$out" && mkdir -p "$out"
say "binaries and images"
images/build.sh "${binaries[@]}"
for binary in "${binaries[@]}"; do
  cp "target/images/$binary.tar" "$out/$binary-$version-linux-$arch.image.tar"
  work=$(mktemp -d)
  strip --strip-debug -o "$work/$binary" "target/$arch-unknown-linux-gnu/release/$binary"
  cp LICENSE README.md "$work/"
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" -C "$work" -cf - . |
    gzip -n >"$out/$binary-$version-linux-$arch.tar.gz"
  rm -rf "$work"
done

say "SBOM"
command -v cargo-cyclonedx >/dev/null || cargo install --locked --quiet --root "$FANOUT_TOOLS" cargo-cyclonedx@0.5.9
for binary in "${binaries[@]}"; do
  directory=$(cargo metadata --no-deps --format-version 1 |
    python3 -c 'import json, os, sys; print(next(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if any(t["name"] == sys.argv[1] for t in p["targets"])))' "$binary")
  (cd "$directory" && cargo cyclonedx --quiet --format json --target "$arch-unknown-linux-gnu" --override-filename sbom)
  mv "$directory/sbom.json" "$out/$binary-$version-linux-$arch.cdx.json"
done
find . -path ./target -prune -o -name sbom.json -exec rm {} +

if [ "${1:-}" = --chart ]; then
  say "chart"
  helm package charts/fanout --destination "$out"
fi
(cd "$out" && sha256sum -- *)
