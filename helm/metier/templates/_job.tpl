{{/* A pod that runs one command of ours to its end. Takes (dict "root" $ "component" "…" "container" "…" "command" … "env" … "mounts" "…" "volumes" "…" "account" "commands"). */}}
{{- define "metier.commandPod" -}}
{{- $trust := dict "root" .root -}}
restartPolicy: Never
serviceAccountName: {{ include "metier.fullname" .root }}-{{ .account }}
{{ include "metier.pod" (dict "root" .root "component" .component "pod" .root.Values.podDefaults) }}
containers:
  {{- include "metier.command" (dict "root" .root "role" "orchestrator" "name" .component "command" .command "env" (concat (list (include "metier.env.base" .root) (include "metier.env.trust" $trust)) .env) "more" (list .root.Values.env) "mounts" (print .mounts (include "metier.trustMounts" $trust))) | nindent 2 }}
volumes:
  - {name: tmp, emptyDir: {sizeLimit: 256Mi}}
  {{- with print .volumes (include "metier.trustVolumes" $trust) | trim }}{{ . | nindent 2 }}{{ end }}
{{- end }}

{{/* A Job. Where "hook" says on what events, it runs before the release, from which nothing is there yet but what has the same annotations; else it is named for the revision. */}}
{{- define "metier.job" -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "metier.name" . }}{{ if not .hook }}-{{ .root.Release.Revision }}{{ end }}
  labels: {{- include "metier.labels" . | nindent 4 }}
  {{- with .hook }}
  annotations: {{- include "metier.hook" . | nindent 4 }}
  {{- end }}
spec:
  backoffLimit: {{ .tries }}
  {{- with .deadline }}
  activeDeadlineSeconds: {{ . }}
  {{- end }}
  ttlSecondsAfterFinished: 86400
  template:
    metadata:
      labels: {{- merge (include "metier.labels" . | fromYaml) .root.Values.podDefaults.labels | toYaml | nindent 8 }}
      {{- with .root.Values.podDefaults.annotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec: {{- include "metier.commandPod" (merge (dict "account" (ternary "before" "commands" (not (empty .hook)))) .) | nindent 6 }}
{{- end }}

{{/* Takes the weight, as text. */}}
{{- define "metier.hook" -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
