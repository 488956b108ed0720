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
# rendered WHAT TEXT|'!'TEXT ARGS...: the chart with these arguments has, or has not, a text.
rendered() {
  local what=$1 text=$2
  shift 2
  local page
  page=$(helm template fanout "$chart" --namespace fanout-system --set crds.enabled=false "$@")
  case $text in
    !*) if grep -qF -- "${text#!}" <<<"$page"; then die "$what: \`${text#!}\` is in the chart with $*"; fi ;;
    *) grep -qF -- "$text" <<<"$page" || die "$what: \`$text\` is not in the chart with $*" ;;
  esac
}
rendered "the platform may choose the user" '!runAsUser: '
rendered "OpenShift is recognised" 'name: FANOUT_FIXED_UIDS, value: "false"' --api-versions security.openshift.io/v1
rendered "nothing else is" '!FANOUT_FIXED_UIDS'
rendered "users may be fixed by hand" '!FANOUT_FIXED_UIDS' --api-versions security.openshift.io/v1 --set fixedUids=true
rendered "replicas keep apart" podAntiAffinity --set replicas=2
rendered "one has nobody to keep apart from" '!podAntiAffinity'
rendered "it leaves a lost machine soon" 'tolerationSeconds: 30'
rendered "a class of its own" 'name: FANOUT_OPERATOR_CLASS, value: "blue"' --set operatorClass=blue
rendered "the Lease of its class" 'resourceNames: [blue.fanoutclusters.fanout.dev]' --set operatorClass=blue
rendered "the Lease of those without" 'resourceNames: [fanoutclusters.fanout.dev]'
rendered "the nodes of the cluster" 'resources: [nodes]'
rendered "the nodes of the cluster, for some namespaces" 'resources: [nodes]' --set 'watchNamespaces={chat}'
rendered "no ClusterRole for some namespaces" '!kind: ClusterRole' --set 'watchNamespaces={chat}' --set rbac.nodes=false,rbac.aggregate=false
