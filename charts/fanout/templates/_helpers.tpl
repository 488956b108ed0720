{{/* Name of everything in the release's namespace. */}}
{{- define "fanout.name" -}}
{{- printf "%s-operator" (.Release.Name | trunc 54 | trimSuffix "-") -}}
{{- end -}}

{{/* Name of what belongs to no namespace: two releases may bear one name in two namespaces. */}}
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

{{/* The name app.kubernetes.io/name=fanout-operator is fixed: the nodes' NetworkPolicies let it in. */}}
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

{{/* An image from (dict "image" values "repository" default "root" $). */}}
{{- define "fanout.image" -}}
{{- $image := .image | default dict -}}
{{- $repository := dig "repository" "" $image | default .repository -}}
{{- with dig "digest" "" $image -}}
{{- printf "%s@%s" $repository . -}}
{{- else -}}
{{- printf "%s:%s" $repository (dig "tag" "" $image | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* true unless the value at a path of .Values says false; values of an older release may lack the path. */}}
{{- define "fanout.on" -}}
{{- $at := .values -}}
{{- range .path -}}
{{- if kindIs "map" $at -}}{{- $at = get $at . -}}{{- else -}}{{- $at = "" -}}{{- end -}}
{{- end -}}
{{- if ne (toString $at) "false" -}}true{{- end -}}
{{- end -}}

{{/* false where pods must not name the user they run as, else empty. */}}
{{- define "fanout.fixedUids" -}}
{{- $said := toString .Values.fixedUids -}}
{{- if or (eq $said "true") (eq $said "false") -}}
{{- if eq $said "false" }}false{{ end -}}
{{- else if .Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
false
{{- end -}}
{{- end -}}

{{/* A map with another merged over it, of (list own given); null in the other takes a key away. */}}
{{- define "fanout.merged" -}}
{{- $own := first . -}}
{{- range $key, $value := last . | default dict -}}
{{- if kindIs "invalid" $value -}}{{- $own = unset $own $key -}}{{- else -}}{{- $own = set $own $key $value -}}{{- end -}}
{{- end -}}
{{- toYaml $own -}}
{{- end -}}

{{/* What the operator may do where FanoutClusters are; e2e runs it with exactly this. */}}
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
# The claim of a managed Redis outlives its FanoutCluster, so it is never deleted.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# Only metadata is watched; a Secret is read when a FanoutCluster names or owns it. Changed are those alone that the
# operator made, where a key or a label of them is gone; none is ever deleted.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch]
# Patched are labels and deletion cost alone, for nodes go by their ReplicaSet. Deleted is the pod of a managed Redis
# whose Kubernetes node is lost.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
# Why the kubelet cannot mount a volume of a pod that does not start.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
# By this Lease another operator sees that the FanoutClusters of a namespace are taken.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ with .Values.operatorClass }}{{ . }}.{{ end }}fanoutclusters.fanout.dev]
  verbs: [get, update]
{{- end -}}
