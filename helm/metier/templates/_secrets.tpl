{{/* The Secrets that are made here, of plain values alone; nothing is drawn or looked up, so that the same values give the same release. */}}
{{- define "metier.secrets" -}}
{{- $made := dict -}}
{{- with .Values.postgres.external.url -}}{{- $_ := set $made "postgres" (dict "url" .) -}}{{- end -}}
{{- if .Values.postgres.bundled.enabled -}}
  {{- $password := .Values.postgres.bundled.password -}}
  {{- $_ := set $made "postgres" (dict "password" $password "url" (printf "postgresql://metier:%s@%s:5432/metier" $password (include "metier.address" (dict "root" . "component" "postgres")))) -}}
{{- end -}}
{{- with .Values.redis.external.url -}}{{- $_ := set $made "redis" (dict "url" .) -}}{{- end -}}
{{- if .Values.redis.bundled.enabled -}}
  {{- $password := .Values.redis.bundled.password -}}
  {{- $_ := set $made "redis" (dict "password" $password "url" (printf "redis://:%s@%s:6379/0" $password (include "metier.address" (dict "root" . "component" "redis"))) "valkey.conf" (printf "requirepass %s\nappendonly yes\nmaxmemory-policy noeviction\ndir /data\n" $password)) -}}
{{- end -}}
{{- with .Values.grantKey.value -}}{{- $_ := set $made "grant" (dict "grant-key" .) -}}{{- end -}}
{{- toYaml $made -}}
{{- end }}
