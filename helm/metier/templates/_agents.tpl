{{/* Every agent by name, merged over agentDefaults. */}}
{{- define "metier.agents" -}}
{{- $found := dict -}}
{{- range $name, $own := .Values.agents -}}
  {{- $agent := mergeOverwrite (deepCopy $.Values.agentDefaults) $own -}}
  {{- $_ := set $agent "model" (default $agent.file.model $agent.model) -}}
  {{- $_ := set $found $name $agent -}}
{{- end -}}
{{- toYaml $found -}}
{{- end }}

{{/* The agent's file as its role reads it. Takes (dict "name" "…" "agent" …). */}}
{{- define "metier.agentFile" -}}
{{- mergeOverwrite (deepCopy .agent.file) (dict "name" .name "model" .agent.model) | toYaml -}}
{{- end }}

{{/* An agent's model in place of the one in its file, which is in a ConfigMap that we do not write. */}}
{{- define "metier.env.model" -}}
{{- if and .root.Values.agentFiles.existingConfigMap .agent.model -}}
METIER_MODEL_{{ .name | upper | replace "-" "_" }}: {{ .agent.model | quote }}
{{- end -}}
{{- end }}
