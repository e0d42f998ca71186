{{/* The name that every object of the release begins with. */}}
{{- define "metier.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{/* What selects a component's pods; never changes in the life of a release. Takes (dict "root" $ "component" "…"). */}}
{{- define "metier.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "metier.labels" -}}
{{ include "metier.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "metier.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end -}}
{{- end }}

{{/* What every pod has: identity, no credentials of the cluster, no root. Takes the root. */}}
{{- define "metier.pod" -}}
serviceAccountName: {{ include "metier.fullname" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "metier.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The environment that every container has. Takes the root. */}}
{{- define "metier.env" -}}
- {name: METIER_LOG_LEVEL, value: {{ .Values.logLevel | quote }}}
- {name: METIER_DRAIN_S, value: {{ .Values.drainSeconds | quote }}}
- {name: METIER_READY_FILE, value: /tmp/metier.ready}
{{- with .Values.otlpEndpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "metier.kafkaEnv" -}}
- {name: METIER_KAFKA_BOOTSTRAP, value: {{ required "kafka.bootstrap is required: host:port of one or more brokers" .Values.kafka.bootstrap | quote }}}
{{- with .Values.kafka.prefix }}
- {name: METIER_KAFKA_PREFIX, value: {{ . | quote }}}
{{- end }}
{{- if .Values.agentFiles }}
- {name: METIER_AGENTS, value: /etc/metier/agents}
{{- end }}
{{- end }}

{{/* One variable from the existing Secret. Takes (dict "root" $ "name" "METIER_…" "key" "…"). */}}
{{- define "metier.secretEnv" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ required "existingSecret is required: the name of a Secret that you made" .root.Values.existingSecret }}
      key: {{ .key }}
{{- end }}

{{/* The readiness of a role: the file that it makes when it holds its partitions, and removes when it drains. */}}
{{- define "metier.readiness" -}}
readinessProbe:
  exec: {command: [sh, -c, 'test -f "$METIER_READY_FILE"']}
  periodSeconds: 5
{{- end }}

{{- define "metier.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.agentFiles }}
- {name: agents, mountPath: /etc/metier/agents, readOnly: true}
{{- end }}
{{- end }}

{{- define "metier.volumes" -}}
- {name: tmp, emptyDir: {sizeLimit: 256Mi}}
{{- if .Values.agentFiles }}
- {name: agents, configMap: {name: {{ include "metier.fullname" . }}-agents}}
{{- end }}
{{- end }}

{{/* Annotations of a pod: yours, and what makes it roll when its agent files change. */}}
{{- define "metier.podAnnotations" -}}
{{- if or .Values.podAnnotations .Values.agentFiles }}
annotations:
  {{- with .Values.podAnnotations }}{{ toYaml . | nindent 2 }}{{ end }}
  {{- if .Values.agentFiles }}
  checksum/agents: {{ .Values.agentFiles | toJson | sha256sum }}
  {{- end }}
{{- end }}
{{- end }}
