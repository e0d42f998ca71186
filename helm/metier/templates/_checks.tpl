{{/* Values that no release can be made of: each is refused with what to set. `checks.yaml` asks for all of them. */}}
{{- define "metier.checks" -}}
{{- include "metier.checkShape" . -}}
{{- if .Values.api.enabled }}{{ fail "api.enabled: there is no `metier api` yet. Leave it false" }}{{ end -}}
{{- include "metier.checkAgents" . -}}
{{- include "metier.checkReplicas" (dict "path" "orchestrator.replicas" "count" .Values.orchestrator.replicas "most" .Values.topics.partitions) -}}
{{- include "metier.checkScaling" (dict "root" . "settings" .Values.toolRunner "path" "toolRunner" "most" 0) -}}
{{- include "metier.checkStores" . -}}
{{- include "metier.checkKafka" . -}}
{{- include "metier.checkEngine" . -}}
{{- include "metier.checkHooks" . -}}
{{- include "metier.checkVariables" . -}}
{{- include "metier.checkLabels" . -}}
{{- include "metier.checkFiles" . -}}
{{- include "metier.checkLists" . -}}
{{- end }}

{{- define "metier.checkAgents" -}}
{{- if not .Values.agents }}{{ fail "agents: there is none. Name one, such as agents.helper.model=openai:gpt-5" }}{{ end -}}
{{- $seen := dict -}}
{{- range $name := keys .Values.agents -}}
  {{- with get $seen (lower $name) -}}
    {{- fail (printf "agents: %s are one name in other case, and would share a topic and a Deployment. Rename one of them" (list . $name | sortAlpha | join " and ")) -}}
  {{- end -}}
  {{- $_ := set $seen (lower $name) $name -}}
{{- end -}}
{{- range $name, $agent := include "metier.agents" . | fromYaml -}}
  {{- include "metier.checkAgent" (dict "root" $ "name" $name "agent" $agent) -}}
{{- end -}}
{{- end }}

{{- define "metier.checkAgent" -}}
{{- $path := printf "agents.%s" .name -}}
{{- $mapped := .root.Values.agentFiles.existingConfigMap -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]{0,48}[a-z0-9])?$" .name) -}}
  {{- fail (printf "%s cannot be an agent's name. Rename it: lower-case letters, digits and hyphens, at most 50, and a letter first" $path) -}}
{{- end -}}
{{- if not (or .agent.model $mapped) -}}
  {{- fail (printf "%s has no model. Set %s.model, such as openai:gpt-5, or agentDefaults.model" $path $path) -}}
{{- end -}}
{{- if and $mapped (hasKey (get .root.Values.agents .name) "file") -}}
  {{- fail (printf "%s.file and agentFiles.existingConfigMap are both set: the files are in the ConfigMap then. Remove one of them" $path) -}}
{{- end -}}
{{- $own := get (get .root.Values.agents .name) "file" | default dict -}}
{{- range $field, $is := dict "name" .name "model" .agent.model -}}
  {{- if and (hasKey $own $field) (ne (get $own $field | toString) $is) -}}
    {{- fail (printf "%s.file.%s is %q, and the chart writes %q there. Leave it out of the file" $path $field (get $own $field | toString) $is) -}}
  {{- end -}}
{{- end -}}
{{- include "metier.checkScaling" (dict "root" .root "settings" .agent "path" $path "most" .root.Values.topics.partitions) -}}
{{- end }}

{{- define "metier.checkReplicas" -}}
{{- if and .most (gt (int .count) (int .most)) -}}
  {{- fail (printf "%s is %d, and its topic has topics.partitions=%d: the others would stand idle. Set topics.partitions to at least %d, or fewer replicas" .path (int .count) (int .most) (int .count)) -}}
{{- end -}}
{{- end }}

{{/* Takes (dict "root" $ "settings" … "path" "agents.x" "most" partitions, 0: any number). */}}
{{- define "metier.checkScaling" -}}
{{- $scaling := .settings.autoscaling -}}
{{- if eq $scaling.type "none" -}}
  {{- include "metier.checkReplicas" (dict "path" (printf "%s.replicas" .path) "count" .settings.replicas "most" .most) -}}
{{- else -}}
  {{- include "metier.checkReplicas" (dict "path" (printf "%s.autoscaling.maxReplicas" .path) "count" $scaling.maxReplicas "most" .most) -}}
  {{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
    {{- fail (printf "%s.autoscaling.minReplicas is %d, more than maxReplicas=%d. Set minReplicas to at most that" .path (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
  {{- end -}}
{{- end -}}
{{- if and (eq $scaling.type "keda") (gt (int $scaling.fallbackReplicas) (int $scaling.maxReplicas)) -}}
  {{- fail (printf "%s.autoscaling.fallbackReplicas is %d, more than maxReplicas=%d. Set fallbackReplicas to at most that" .path (int $scaling.fallbackReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq $scaling.type "hpa") (not (dig "requests" "cpu" "" .settings.resources)) -}}
  {{- fail (printf "%s.autoscaling.type is hpa, which follows the share of the requested processor. Set %s.resources.requests.cpu" .path .path) -}}
{{- end -}}
{{- if and (eq $scaling.type "keda") (not (.root.Capabilities.APIVersions.Has "keda.sh/v1alpha1")) -}}
  {{- fail (printf "%s.autoscaling.type is keda, and the cluster has no keda.sh/v1alpha1. Install KEDA first (helm template: add --api-versions keda.sh/v1alpha1), or set %s.autoscaling.type to hpa or none" .path .path) -}}
{{- end -}}
{{- end }}

{{- define "metier.checkStores" -}}
{{- $kafka := .Values.kafka.external.bootstrap -}}
{{- include "metier.oneOf" (dict "store" "kafka" "given" $kafka "bundled" .Values.kafka.bundled.enabled "how" "kafka.external.bootstrap to host:port of a broker") -}}
{{- range $store := list "postgres" "redis" -}}
  {{- $values := get $.Values $store -}}
  {{- $given := or $values.external.existingSecret $values.external.url -}}
  {{- $how := printf "%s.external.existingSecret to a Secret whose key %s.external.urlKey holds its URL" $store $store -}}
  {{- include "metier.oneOf" (dict "store" $store "given" $given "bundled" $values.bundled.enabled "how" $how) -}}
  {{- if and $values.external.existingSecret $values.external.url -}}
    {{- fail (printf "%s.external.existingSecret and %s.external.url are both set. Remove one of them" $store $store) -}}
  {{- end -}}
  {{- if and $values.bundled.enabled (not $values.bundled.password) -}}
    {{- fail (printf "%s.bundled.enabled is true, and it has no password. Set %s.bundled.password to any text of letters and digits" $store $store) -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.postgres.bundled.enabled .Values.postgres.external.tls.caSecret -}}
  {{- fail "postgres.external.tls.caSecret is for a server of yours, and postgres.bundled.enabled is true, which speaks no TLS. Remove one of them" -}}
{{- end -}}
{{- if and .Values.redis.bundled.enabled .Values.redis.external.keda.address -}}
  {{- fail "redis.external.keda.address is for a server of yours, and redis.bundled.enabled is true, which KEDA finds by itself. Remove one of them" -}}
{{- end -}}
{{- if not (or .Values.grantKey.existingSecret .Values.grantKey.value) -}}
  {{- fail "grantKey: agents and tool runners share none. Set grantKey.existingSecret to a Secret with any long random text under the key grantKey.key" -}}
{{- end -}}
{{- if and .Values.grantKey.existingSecret .Values.grantKey.value -}}
  {{- fail "grantKey.existingSecret and grantKey.value are both set. Remove one of them" -}}
{{- end -}}
{{- with .Values.redis.external.keda.address -}}
  {{- if not (include "metier.isAddress" .) }}{{ fail (printf "redis.external.keda.address is %q. Set it to host:port, without a scheme" .) }}{{ end -}}
{{- end -}}
{{- if and (eq .Values.toolRunner.autoscaling.type "keda") (not (or .Values.redis.bundled.enabled .Values.redis.external.keda.address)) -}}
  {{- fail "toolRunner.autoscaling.type is keda, and KEDA is not told where Redis is. Set redis.external.keda.address to host:port" -}}
{{- end -}}
{{- end }}

{{/* Whether a text is host:port, the host a name, an IPv4 address or an IPv6 address in brackets: "true" or nothing. */}}
{{- define "metier.isAddress" -}}
{{- if and (regexMatch `^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\]):[1-9][0-9]{0,4}$` .) (le (splitList ":" . | last | int) 65535) }}true{{ end -}}
{{- end }}

{{- define "metier.oneOf" -}}
{{- if and .given .bundled -}}
  {{- fail (printf "%s.external and %s.bundled.enabled are both set. Keep the one that is meant" .store .store) -}}
{{- end -}}
{{- if not (or .given .bundled) -}}
  {{- fail (printf "%s: where is it? Set %s, or for an evaluation %s.bundled.enabled=true" .store .how .store) -}}
{{- end -}}
{{- end }}

{{- define "metier.checkKafka" -}}
{{- $external := .Values.kafka.external -}}
{{- range $broker := ternary (list) (splitList "," $external.bootstrap) (empty $external.bootstrap) -}}
  {{- if not (include "metier.isAddress" $broker) -}}
    {{- fail (printf "kafka.external.bootstrap: %q is no address of a broker. Set it to host:port, without a scheme, and more of them with a comma between" $broker) -}}
  {{- end -}}
{{- end -}}
{{- if and (hasPrefix "SASL" $external.securityProtocol) (not $external.existingSecret) -}}
  {{- fail (printf "kafka.external.securityProtocol is %s, and there are no credentials. Set kafka.external.existingSecret to a Secret with a user's name and password" $external.securityProtocol) -}}
{{- end -}}
{{- $tls := or $external.tls.caSecret $external.tls.clientSecret -}}
{{- if and $tls (not (hasSuffix "SSL" $external.securityProtocol)) -}}
  {{- fail (printf "kafka.external.tls is set, and kafka.external.securityProtocol is %s, which has no TLS. Set it to SSL or SASL_SSL" $external.securityProtocol) -}}
{{- end -}}
{{- if and $external.existingSecret (not (hasPrefix "SASL" $external.securityProtocol)) -}}
  {{- fail (printf "kafka.external.existingSecret has a user's password, and kafka.external.securityProtocol is %s, which asks for none. Set it to SASL_SSL" $external.securityProtocol) -}}
{{- end -}}
{{- $known := list "orchestrator" "topics" "operator" "scaler" -}}
{{- range $name := keys .Values.agents }}{{ $known = append $known (printf "agent-%s" $name) }}{{ end -}}
{{- if and $external.users (not (or (hasPrefix "SASL" $external.securityProtocol) $external.tls.clientSecret)) -}}
  {{- fail (printf "kafka.external.users is set, and kafka.external.securityProtocol is %s, where nobody shows who they are. Set it to SASL_SSL, or kafka.external.tls.clientSecret" $external.securityProtocol) -}}
{{- end -}}
{{- range $user := keys $external.users | sortAlpha -}}
  {{- if not (has $user $known) -}}
    {{- fail (printf "kafka.external.users.%s: nobody comes to Kafka as that. Set one of %s" $user ($known | sortAlpha | join ", ")) -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.kafka.bundled.enabled (ne $external.securityProtocol "PLAINTEXT") -}}
  {{- fail "kafka.external.securityProtocol is for a broker of yours, and kafka.bundled.enabled is true. Keep the one that is meant" -}}
{{- end -}}
{{- end }}

{{- define "metier.checkEngine" -}}
{{- $engine := .Values.toolRunner.engine -}}
{{- $sandbox := .Values.toolRunner.sandbox -}}
{{- if gt (int $sandbox.pool) (int $sandbox.limit) -}}
  {{- fail (printf "toolRunner.sandbox.pool is %d, more than toolRunner.sandbox.limit=%d lets there be. Set pool to at most that" (int $sandbox.pool) (int $sandbox.limit)) -}}
{{- end -}}
{{- if and (eq $engine.mode "dind") (not $engine.acknowledgePrivileged) -}}
  {{- fail "toolRunner.engine.mode is dind: its container is privileged, so whoever leaves a sandbox is root on the node. Set toolRunner.engine.acknowledgePrivileged=true if that is meant, on nodes of their own; or mode remote" -}}
{{- end -}}
{{- if eq $engine.mode "remote" -}}
  {{- if not $engine.remote.host -}}
    {{- fail "toolRunner.engine.remote.host: which engine runs the sandboxes? Set it to tcp://host:2376 or ssh://user@host, of an engine that nothing else uses" -}}
  {{- end -}}
  {{- $host := $engine.remote.host | trimPrefix "tcp://" -}}
  {{- if and (hasPrefix "tcp://" $engine.remote.host) (not (include "metier.isAddress" $host)) -}}
    {{- fail (printf "toolRunner.engine.remote.host is %q, which names no host and port. Set it to tcp://host:2376" $engine.remote.host) -}}
  {{- end -}}
  {{- if and (hasPrefix "ssh://" $engine.remote.host) (not (regexMatch "^ssh://[^@/:[:space:]]+@[^@/[:space:]]+(/[^[:space:]]*)?$" $engine.remote.host)) -}}
    {{- fail (printf "toolRunner.engine.remote.host is %q, which names no user and host. Set it to ssh://user@host" $engine.remote.host) -}}
  {{- end -}}
  {{- if not $engine.remote.existingSecret -}}
    {{- fail "toolRunner.engine.remote.existingSecret: an engine is reached over TLS or SSH alone. Set it to a Secret with ca.pem, cert.pem and key.pem, or with the SSH key and known_hosts" -}}
  {{- end -}}
{{- else if $engine.remote.host -}}
  {{- fail (printf "toolRunner.engine.mode is %s, and toolRunner.engine.remote.host is set. Keep the one that is meant" $engine.mode) -}}
{{- end -}}
{{- end }}

{{/* A hook runs before this release has made anything. */}}
{{- define "metier.checkHooks" -}}
{{- if and (eq .Values.migrations.mode "hook") (not .Values.postgres.external.existingSecret) -}}
  {{- fail "migrations.mode is hook, and a hook runs before this release makes its Secrets and stores. Set postgres.external.existingSecret, or migrations.mode=job" -}}
{{- end -}}
{{- if and (eq .Values.topics.mode "hook") .Values.kafka.bundled.enabled -}}
  {{- fail "topics.mode is hook, and a hook runs before this release makes its broker. Set kafka.external.bootstrap, or topics.mode=job" -}}
{{- end -}}
{{- end }}

{{/* Whether something runs before the release: "true" or nothing. */}}
{{- define "metier.hooks" -}}
{{- if or (include "metier.doctorRuns" .) (eq .Values.migrations.mode "hook") (eq .Values.topics.mode "hook") }}true{{ end -}}
{{- end }}

{{/* Whether all that the doctor looks at is there before the release: "true" or nothing. */}}
{{- define "metier.doctorRuns" -}}
{{- $stores := and .Values.postgres.external.existingSecret .Values.redis.external.existingSecret .Values.grantKey.existingSecret .Values.kafka.external.bootstrap -}}
{{- if and .Values.doctor.enabled $stores }}true{{ end -}}
{{- end }}
