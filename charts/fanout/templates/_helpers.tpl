{{/* Name of all objects in the release's namespace. */}}
{{- define "fanout.name" -}}
{{- printf "%s-operator" (.Release.Name | trunc 54 | trimSuffix "-") -}}
{{- end -}}

{{/* Name of cluster-scoped objects; unique even if two releases in two namespaces have the same name. */}}
{{- define "fanout.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "fanout.name" .) -}}
{{- end -}}

{{- define "fanout.serviceAccountName" -}}
{{- $account := .Values.serviceAccount | default dict -}}
{{- if eq (toString (dig "create" true $account)) "false" -}}
{{- dig "name" "" $account | default "default" -}}
{{- else -}}
{{- dig "name" "" $account | default (include "fanout.name" .) -}}
{{- end -}}
{{- end -}}

{{/* app.kubernetes.io/name=fanout-operator is fixed because the nodes' NetworkPolicies admit it. */}}
{{- define "fanout.selector" -}}
app.kubernetes.io/name: fanout-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fanout.labels" -}}
{{ include "fanout.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: fanout
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Image reference from (dict "image" values "repository" default "root" $). */}}
{{- define "fanout.image" -}}
{{- $image := .image | default dict -}}
{{- $repository := dig "repository" "" $image | default .repository -}}
{{- with dig "digest" "" $image -}}
{{- printf "%s@%s" $repository . -}}
{{- else -}}
{{- printf "%s:%s" $repository (dig "tag" "" $image | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* true unless the value at a path of .Values is false; values of an older release may lack the path. */}}
{{- define "fanout.on" -}}
{{- $at := .values -}}
{{- range .path -}}
{{- if kindIs "map" $at -}}{{- $at = get $at . -}}{{- else -}}{{- $at = "" -}}{{- end -}}
{{- end -}}
{{- if ne (toString $at) "false" -}}true{{- end -}}
{{- end -}}

{{/* false if pods must not set the user they run as, otherwise empty. */}}
{{- define "fanout.fixedUids" -}}
{{- $said := toString .Values.fixedUids -}}
{{- if or (eq $said "true") (eq $said "false") -}}
{{- if eq $said "false" }}false{{ end -}}
{{- else if .Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
false
{{- end -}}
{{- end -}}

{{/* Merges the second map of (list own given) over the first; null removes a key. */}}
{{- define "fanout.merged" -}}
{{- $own := first . -}}
{{- range $key, $value := last . | default dict -}}
{{- if kindIs "invalid" $value -}}{{- $own = unset $own $key -}}{{- else -}}{{- $own = set $own $key $value -}}{{- end -}}
{{- end -}}
{{- toYaml $own -}}
{{- end -}}

{{/* The operator's permissions in watched namespaces; e2e runs it with exactly these. */}}
{{- define "fanout.rules" -}}
- apiGroups: [fanout.dev]
  resources: [fanoutclusters]
  verbs: [get, list, watch]
- apiGroups: [fanout.dev]
  resources: [fanoutclusters/status]
  verbs: [patch]
- apiGroups: [apps]
  resources: [replicasets, statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
# Never deleted: the claim of a managed Redis outlives its FanoutCluster.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# The operator watches only metadata, and reads a Secret if a FanoutCluster names or owns it. It changes only Secrets
# that it created, if a key or a label is missing, and never deletes one.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch]
# The operator patches only labels and deletion cost, because the ReplicaSet removes nodes. It deletes only the pod of a
# managed Redis whose Kubernetes node is lost.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
# Read to report why the kubelet cannot mount a volume of a pod that does not start.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
# This Lease shows other operators that the FanoutClusters of a namespace are taken.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ with .Values.operatorClass }}{{ . }}.{{ end }}fanoutclusters.fanout.dev]
  verbs: [get, update]
{{- end -}}
