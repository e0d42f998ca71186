{{/* The name that every object of the release begins with: at most 40 characters, and no dot, which a Service may not have. */}}
{{- define "metier.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $release := .Release.Name | replace "." "-" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride }}
{{- else if contains $name $release }}{{ $release | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" $release $name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{/* The name of a component's objects. A pod's name, which is its host name, must stay under 64 characters: 46 and what Kubernetes adds. Takes (dict "root" $ "component" "…"). */}}
{{- define "metier.name" -}}
{{- $whole := printf "%s-%s" (include "metier.fullname" .root) .component -}}
{{- if gt (len $whole) 46 }}{{ printf "%s-%s" ($whole | trunc 37 | trimSuffix "-") ($whole | sha256sum | trunc 8) }}
{{- else }}{{ $whole }}{{ end -}}
{{- end }}

{{/* What selects a component's pods; never changes in the life of a release. Takes the same. */}}
{{- define "metier.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "metier.labels" -}}
{{ include "metier.selector" . }}
app.kubernetes.io/version: {{ include "metier.version" .root | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: metier
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "metier.version" -}}
{{ .Chart.AppVersion }}
{{- end }}

{{/* Takes (dict "root" $ "role" "orchestrator"): that role's image, by its digest where there is one. */}}
{{- define "metier.image" -}}
{{- $image := .root.Values.image -}}
{{- $repository := $image.repository | replace "{role}" .role -}}
{{- $digest := get $image.digests .role -}}
{{- if $digest }}{{ $repository }}@{{ $digest }}
{{- else }}{{ $repository }}:{{ $image.tag | default (include "metier.version" .root) }}{{ end -}}
{{- end }}
