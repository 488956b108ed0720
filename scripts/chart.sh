#!/usr/bin/env bash
# Lints and renders the chart by the helm on the PATH, with its defaults and with each file of charts/fanout/ci.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
chart=$root/charts/fanout
helm lint --strict "$chart"
for values in "$chart"/ci/*.yaml; do
  [ -e "$values" ] || continue
  helm lint --strict "$chart" --values "$values"
  helm template fanout "$chart" --namespace fanout-system --values "$values" >/dev/null
done
helm template fanout "$chart" --namespace fanout-system >/dev/null
if helm template fanout "$chart" --set noSuchValue=1 >/dev/null 2>&1; then die "values.schema.json lets an unknown value pass"; fi
