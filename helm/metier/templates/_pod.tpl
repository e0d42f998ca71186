{{/* What every pod of ours has: an account without its token, no root, the operator's wishes. Takes (dict "root" $ "component" "…" "pod" … "user" 10001). */}}
{{- define "metier.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext: {{- include "metier.podSecurity" (default 10001 .user) | nindent 2 }}
{{- with .pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .pod.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Takes the user's number. */}}
{{- define "metier.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "metier.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Pods of one component on different nodes and zones, where that can be. */}}
{{- define "metier.spread" -}}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "metier.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}

{{/* /livez knows nothing but this process: a service that is away never ends a role. */}}
{{- define "metier.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 3
livenessProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

{{/* A container of our image that runs one command to its end. Takes (dict "root" $ "role" "…" "name" "…" "command" (list …) "env" … "more" … "mounts" "…"). */}}
{{- define "metier.command" -}}
- name: {{ .name }}
  image: {{ include "metier.image" . }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: {{ toJson .command }}
  env: {{- include "metier.environment" . | trim | nindent 4 }}
  resources: {{- toYaml .root.Values.commandResources | nindent 4 }}
  securityContext: {{- include "metier.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    {{- with trim .mounts }}{{ . | nindent 4 }}{{ end }}
{{- end }}

{{/* A role waits for the tables and topics of its own release before it starts; topics are looked at as an operator, since a role may see its own alone. Takes (dict "root" $ "role" "…"). */}}
{{- define "metier.waits" -}}
{{- $root := .root -}}
{{- $base := include "metier.env.base" $root -}}
{{- $more := list $root.Values.env -}}
{{- $files := dict "root" $root "groups" (list "agents") -}}
{{- include "metier.command" (dict
  "root" $root "role" .role "name" "wait-for-schema" "more" $more "mounts" (include "metier.postgresMounts" $root)
  "command" (list "metier" "migrate" "--check" "--wait" (toString $root.Values.migrations.waitSeconds))
  "env" (list $base (include "metier.env.postgres" $root))) }}
{{ include "metier.command" (dict
  "root" $root "role" .role "name" "wait-for-topics" "more" $more
  "mounts" (print (include "metier.kafkaMounts" (dict "root" $root "user" "operator")) (include "metier.fileMounts" $files))
  "command" (list "metier" "topics" "--check" "--wait" (toString $root.Values.topics.waitSeconds))
  "env" (list $base (include "metier.env.kafka" (dict "root" $root "user" "operator")) (include "metier.env.topics" $root) (include "metier.env.files" $files))) }}
{{- end }}
