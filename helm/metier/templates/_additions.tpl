{{/* What an operator adds to ours, and must not take its place: variables that other values say, labels that select; and lists and texts of which the schema does not see what is in them. */}}

{{- define "metier.checkVariables" -}}
{{- $given := dict "env" .Values.env "agentDefaults.env" .Values.agentDefaults.env "orchestrator.env" .Values.orchestrator.env "toolRunner.env" .Values.toolRunner.env -}}
{{- $keys := dict "agentDefaults.modelKeys" .Values.agentDefaults.modelKeys -}}
{{- range $name, $agent := .Values.agents -}}
  {{- $_ := set $given (printf "agents.%s.env" $name) (default dict $agent.env) -}}
  {{- $_ := set $keys (printf "agents.%s.modelKeys" $name) (default dict $agent.modelKeys) -}}
{{- end -}}
{{- $instead := include "metier.variablesOfValues" . | fromYaml -}}
{{- range $path, $variables := merge $given $keys -}}
  {{- range $variable := keys $variables | sortAlpha -}}
    {{- with get $instead $variable -}}{{- fail (printf "%s.%s is the chart's own. %s" $path $variable .) -}}{{- end -}}
  {{- end -}}
{{- end -}}
{{- range $name, $agent := include "metier.agents" . | fromYaml -}}
  {{- range $variable := keys $agent.modelKeys | sortAlpha -}}
    {{- if or (hasKey $agent.env $variable) (hasKey $.Values.env $variable) -}}
      {{- fail (printf "%s is both in agents.%s.modelKeys and in an env, which would take its place. Remove it from env" $variable $name) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{/* Each variable that a value says, with what to do instead of setting it: one that is set beside its value would be unknown to scaling, probes or checks, or be known to pods that must not have it. */}}
{{- define "metier.variablesOfValues" -}}
DOCKER_HOST: Set toolRunner.engine
METIER_CONCURRENCY: Set agents.NAME.concurrency
METIER_DRAIN_S: Set longestCallSeconds, which the grace of the pods follows
METIER_GRANT_KEY: Set grantKey.existingSecret
METIER_HTTP_HOST: "Leave it out: probes come from the node"
METIER_HTTP_PORT: "Leave it out: probes and monitors come to 8080"
METIER_KAFKA_BOOTSTRAP: Set kafka.external.bootstrap
METIER_KAFKA_PARTITIONS: Set topics.partitions
METIER_KAFKA_PASSWORD: Set kafka.external.existingSecret
METIER_KAFKA_PREFIX: Set kafka.prefix
METIER_KAFKA_REPLICATION: Set topics.replication
METIER_KAFKA_SASL_MECHANISM: Set kafka.external.saslMechanism
METIER_KAFKA_SECURITY_PROTOCOL: Set kafka.external.securityProtocol
METIER_KAFKA_USERNAME: Set kafka.external.existingSecret
METIER_LANE_NAMESPACE: Set redis.namespace
METIER_POSTGRES_URL: Set postgres.external.existingSecret
METIER_REDIS_URL: Set redis.external.existingSecret
METIER_SANDBOX_IMAGE: Set toolRunner.sandbox.image
METIER_SANDBOX_LIMIT: Set toolRunner.sandbox.limit
METIER_SANDBOX_POOL: Set toolRunner.sandbox.pool
METIER_TOOL_KINDS: Set toolRunner.kinds
METIER_WORKFLOWS: Set orchestrator.workflows
{{- end }}

{{/* What selects pods is not to be given to them by hand: the chart's own would win, without a word. */}}
{{- define "metier.checkLabels" -}}
{{- $given := dict "podDefaults" .Values.podDefaults "agentDefaults.pod" .Values.agentDefaults.pod "orchestrator.pod" .Values.orchestrator.pod "toolRunner.pod" .Values.toolRunner.pod -}}
{{- range $name, $agent := .Values.agents -}}{{- $_ := set $given (printf "agents.%s.pod" $name) (default dict $agent.pod) -}}{{- end -}}
{{- $ours := include "metier.labels" (dict "root" . "component" "any") | fromYaml -}}
{{- range $path, $pod := $given -}}
  {{- range $label := keys (default dict $pod.labels) | sortAlpha -}}
    {{- if hasKey $ours $label }}{{ fail (printf "%s.labels: %s is the chart's own. Leave it out, or give your label another name" $path $label) }}{{ end -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{- define "metier.checkFiles" -}}
{{- $texts := dict -}}
{{- range $name := list "tenants" "schedules" "models" -}}{{- $_ := set $texts $name (get $.Values.files $name | default "") -}}{{- end -}}
{{- range $group := list "safety" "tools" -}}
  {{- range $name, $text := get $.Values.files $group -}}
    {{- if regexMatch "[.]ya?ml$" $name }}{{ $_ := set $texts (printf "%s: %s" $group $name) $text }}{{ end -}}
  {{- end -}}
{{- end -}}
{{- range $path, $text := $texts -}}
  {{- $read := fromYaml $text -}}
  {{- if and (eq (len $read) 1) (hasKey $read "Error") -}}
    {{- fail (printf "files.%s is not the YAML of a map: %s. Set it to the text of the file, after `|`" $path ($read.Error | trimPrefix "error converting YAML to JSON: " | replace "\n" " ")) -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{- define "metier.checkLists" -}}
{{- range $to, $rule := .Values.networkPolicy.egress -}}
  {{- if not $rule.ports }}{{ fail (printf "networkPolicy.egress.%s.ports is empty, which lets everything out. Name the ports that are needed" $to) }}{{ end -}}
  {{- range $port := $rule.ports -}}
    {{- if or (lt (int $port) 1) (gt (int $port) 65535) }}{{ fail (printf "networkPolicy.egress.%s.ports: %d is no port. Set it to 1 to 65535" $to (int $port)) }}{{ end -}}
  {{- end -}}
{{- end -}}
{{- range .Values.image.pullSecrets -}}
  {{- if not (regexMatch "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$" .) }}{{ fail (printf "image.pullSecrets: %q cannot be a Secret's name. Set it to lower-case letters, digits, dots and hyphens" .) }}{{ end -}}
{{- end -}}
{{- end }}
