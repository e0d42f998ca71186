{{/* The files that roles read, by group; each group is a ConfigMap and a folder under /etc/metier. Groups without a file are left out. */}}
{{- define "metier.files" -}}
{{- $groups := dict "safety" .Values.files.safety "tool-files" .Values.files.tools "settings" dict -}}
{{- range $name := list "tenants" "schedules" "models" -}}
  {{- with get $.Values.files $name -}}{{- $_ := set $groups.settings (printf "%s.yaml" $name) . -}}{{- end -}}
{{- end -}}
{{- $agents := dict -}}
{{- if not .Values.agentFiles.existingConfigMap -}}
  {{- range $name, $agent := include "metier.agents" . | fromYaml -}}
    {{- $_ := set $agents (printf "%s.yaml" $name) (include "metier.agentFile" (dict "name" $name "agent" $agent)) -}}
  {{- end -}}
{{- end -}}
{{- $_ := set $groups "agents" $agents -}}
{{- range $name, $files := $groups -}}{{- if not $files -}}{{- $_ := unset $groups $name -}}{{- end -}}{{- end -}}
{{- toYaml $groups -}}
{{- end }}

{{/* Which groups of these are there. Takes (dict "root" $ "groups" (list …)); gives {"names": […]}. */}}
{{- define "metier.groups" -}}
{{- $names := list -}}
{{- $files := include "metier.files" .root | fromYaml -}}
{{- range .groups -}}
  {{- if or (hasKey $files .) (and (eq . "agents") $.root.Values.agentFiles.existingConfigMap) -}}{{- $names = append $names . -}}{{- end -}}
{{- end -}}
{{- dict "names" $names | toYaml -}}
{{- end }}

{{- define "metier.fileMounts" -}}
{{- range (include "metier.groups" . | fromYaml).names }}
- {name: {{ . }}, mountPath: /etc/metier/{{ . }}, readOnly: true}
{{- end }}
{{- end }}

{{/* Takes "hook" too: the copies that hooks read. */}}
{{- define "metier.fileVolumes" -}}
{{- range (include "metier.groups" . | fromYaml).names }}
{{- $ours := printf "%s-%s%s" (include "metier.fullname" $.root) . (ternary "-before" "" (default false $.hook)) }}
{{- $name := ternary (default $ours $.root.Values.agentFiles.existingConfigMap) $ours (eq . "agents") }}
- {name: {{ . }}, configMap: {name: {{ $name }}}}
{{- end }}
{{- end }}

{{/* Where a role finds them. Takes the same. */}}
{{- define "metier.env.files" -}}
{{- $variables := dict "agents" "METIER_AGENTS" "safety" "METIER_SAFETY" "tool-files" "METIER_TOOL_FILES" -}}
{{- range $group := (include "metier.groups" . | fromYaml).names }}
{{- if eq $group "settings" }}
{{- range $name := list "tenants" "schedules" "models" }}
{{- if get $.root.Values.files $name }}
METIER_{{ upper $name }}: /etc/metier/settings/{{ $name }}.yaml
{{- end }}
{{- end }}
{{- else }}
{{ get $variables $group }}: /etc/metier/{{ $group }}
{{- end }}
{{- end }}
{{- end }}
