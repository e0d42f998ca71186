{{/* The environment of a container is a map here, name to text or to valueFrom; values of the operator's own replace ours. Each piece below is one. */}}

{{/* Takes (dict "env" (list of pieces as text) "more" (list of maps)). In the order of names, so that K8S_… stand before OTEL_…, which is made of them. */}}
{{- define "metier.environment" -}}
{{- $all := dict -}}
{{- range .env -}}{{- $all = mergeOverwrite $all (fromYaml .) -}}{{- end -}}
{{- range .more -}}{{- $all = mergeOverwrite $all . -}}{{- end -}}
{{- range $name, $value := $all }}
- name: {{ $name }}
  {{- if kindIs "map" $value }}
  valueFrom: {{- toYaml $value | nindent 4 }}
  {{- else }}
  value: {{ $value | toString | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{/* What every container has. */}}
{{- define "metier.env.base" -}}
HOME: /tmp
METIER_LOG_LEVEL: {{ .Values.logLevel | quote }}
{{- end }}

{{/* What a long-running role has beside it. Takes (dict "root" $ "component" "…"). */}}
{{- define "metier.env.role" -}}
METIER_DRAIN_S: {{ .root.Values.longestCallSeconds | quote }}
METIER_HTTP_HOST: 0.0.0.0
METIER_HTTP_PORT: "8080"
K8S_NAMESPACE: {fieldRef: {fieldPath: metadata.namespace}}
K8S_NODE: {fieldRef: {fieldPath: spec.nodeName}}
K8S_POD: {fieldRef: {fieldPath: metadata.name}}
OTEL_SERVICE_NAME: metier-{{ .component }}
OTEL_RESOURCE_ATTRIBUTES: {{ include "metier.resource" .root | quote }}
{{ include "metier.env.otlp" .root }}
{{- end }}

{{- define "metier.env.otlp" -}}
{{- with .Values.otel.endpoint -}}
OTEL_EXPORTER_OTLP_ENDPOINT: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "metier.env.workflows" -}}
METIER_WORKFLOWS: {{ .Values.orchestrator.workflows | quote }}
{{- end }}

{{- define "metier.resource" -}}
service.namespace={{ .Release.Name }},service.version={{ .Values.image.tag | default .Chart.AppVersion }},k8s.namespace.name=$(K8S_NAMESPACE),k8s.node.name=$(K8S_NODE),k8s.pod.name=$(K8S_POD)
{{- range $name, $value := .Values.otel.resourceAttributes }},{{ $name }}={{ $value }}{{ end }}
{{- end }}

{{/* The host name of a bundled store. Takes (dict "root" $ "component" "kafka"). */}}
{{- define "metier.address" -}}
{{ include "metier.name" . }}.{{ .root.Release.Namespace }}.svc
{{- end }}

{{- define "metier.bootstrap" -}}
{{- if .Values.kafka.bundled.enabled }}{{ include "metier.address" (dict "root" . "component" "kafka") }}:9092
{{- else }}{{ .Values.kafka.external.bootstrap }}{{ end -}}
{{- end }}

{{/* The Secret of a user of Kafka: its own, where `users` names one. Takes (dict "root" $ "user" "orchestrator" "default" "…"). */}}
{{- define "metier.kafkaSecret" -}}
{{ default .default (get .root.Values.kafka.external.users .user) }}
{{- end }}

{{/* Where Kafka is, and who comes. Takes (dict "root" $ "user" "orchestrator"). */}}
{{- define "metier.env.kafka" -}}
{{- $external := .root.Values.kafka.external -}}
METIER_KAFKA_BOOTSTRAP: {{ include "metier.bootstrap" .root | quote }}
{{- with .root.Values.kafka.prefix }}
METIER_KAFKA_PREFIX: {{ . | quote }}
{{- end }}
{{- if ne $external.securityProtocol "PLAINTEXT" }}
METIER_KAFKA_SECURITY_PROTOCOL: {{ $external.securityProtocol }}
{{- end }}
{{- if hasPrefix "SASL" $external.securityProtocol }}
{{- $secret := include "metier.kafkaSecret" (merge (dict "default" $external.existingSecret) .) }}
METIER_KAFKA_SASL_MECHANISM: {{ $external.saslMechanism }}
METIER_KAFKA_USERNAME: {secretKeyRef: {name: {{ $secret }}, key: {{ $external.usernameKey }}}}
METIER_KAFKA_PASSWORD: {secretKeyRef: {name: {{ $secret }}, key: {{ $external.passwordKey }}}}
{{- end }}
{{- if hasSuffix "SSL" $external.securityProtocol }}
{{- if $external.tls.caSecret }}
METIER_KAFKA_CA_FILE: /etc/metier/kafka-ca/ca.crt
{{- end }}
{{- if $external.tls.clientSecret }}
METIER_KAFKA_CERT_FILE: /etc/metier/kafka-client/tls.crt
METIER_KAFKA_KEY_FILE: /etc/metier/kafka-client/tls.key
{{- end }}
{{- end }}
{{- end }}

{{/* Takes the same. */}}
{{- define "metier.kafkaMounts" -}}
{{- $external := .root.Values.kafka.external -}}
{{- if hasSuffix "SSL" $external.securityProtocol }}
{{- if $external.tls.caSecret }}
- {name: kafka-ca, mountPath: /etc/metier/kafka-ca, readOnly: true}
{{- end }}
{{- if $external.tls.clientSecret }}
- {name: kafka-{{ .user }}, mountPath: /etc/metier/kafka-client, readOnly: true}
{{- end }}
{{- end }}
{{- end }}

{{/* Takes (dict "root" $ "users" (list …)): all that come from one pod. */}}
{{- define "metier.kafkaVolumes" -}}
{{- $external := .root.Values.kafka.external -}}
{{- $tls := $external.tls -}}
{{- if hasSuffix "SSL" $external.securityProtocol }}
{{- with $tls.caSecret }}
- {name: kafka-ca, secret: {secretName: {{ . }}, defaultMode: 0440, items: [{key: {{ $tls.caKey }}, path: ca.crt}]}}
{{- end }}
{{- if $tls.clientSecret }}
{{- range $user := .users }}
- name: kafka-{{ $user }}
  secret:
    secretName: {{ include "metier.kafkaSecret" (dict "root" $.root "user" $user "default" $tls.clientSecret) }}
    defaultMode: 0440
    items: [{key: {{ $tls.certKey }}, path: tls.crt}, {key: {{ $tls.keyKey }}, path: tls.key}]
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The Secret and key with the URL of a store. Takes (dict "root" $ "store" "postgres"). */}}
{{- define "metier.urlFrom" -}}
{{- $external := (get .root.Values .store).external -}}
{{- if $external.existingSecret -}}
secretKeyRef: {name: {{ $external.existingSecret }}, key: {{ $external.urlKey }}}
{{- else -}}
secretKeyRef: {name: {{ include "metier.fullname" .root }}-{{ .store }}, key: url}
{{- end -}}
{{- end }}

{{- define "metier.env.postgres" -}}
METIER_POSTGRES_URL: { {{- include "metier.urlFrom" (dict "root" . "store" "postgres") -}} }
{{- if .Values.postgres.external.tls.caSecret }}
PGSSLMODE: verify-full
PGSSLROOTCERT: /etc/metier/postgres-ca/ca.crt
{{- end }}
{{- end }}

{{- define "metier.postgresMounts" -}}
{{- if .Values.postgres.external.tls.caSecret }}
- {name: postgres-ca, mountPath: /etc/metier/postgres-ca, readOnly: true}
{{- end }}
{{- end }}

{{- define "metier.postgresVolumes" -}}
{{- with .Values.postgres.external.tls }}
{{- if .caSecret }}
- {name: postgres-ca, secret: {secretName: {{ .caSecret }}, defaultMode: 0440, items: [{key: {{ .caKey }}, path: ca.crt}]}}
{{- end }}
{{- end }}
{{- end }}

{{/* Whom TLS believes, where that is not left to the image: an agent's own `trust`, else that of all. Takes (dict "root" $ "own" (dict …)). */}}
{{- define "metier.trust" -}}
{{- $own := default dict .own -}}
{{- $trust := ternary $own .root.Values.trust (not (empty $own.existingConfigMap)) -}}
{{- if $trust.existingConfigMap }}{{ toYaml $trust }}{{ end -}}
{{- end }}

{{- define "metier.env.trust" -}}
{{- if include "metier.trust" . -}}
REQUESTS_CA_BUNDLE: /etc/metier/trust/ca-bundle.crt
SSL_CERT_FILE: /etc/metier/trust/ca-bundle.crt
{{- end }}
{{- end }}

{{- define "metier.trustMounts" -}}
{{- if include "metier.trust" . }}
- {name: trust, mountPath: /etc/metier/trust, readOnly: true}
{{- end }}
{{- end }}

{{- define "metier.trustVolumes" -}}
{{- with include "metier.trust" . | fromYaml }}
- {name: trust, configMap: {name: {{ .existingConfigMap }}, items: [{key: {{ .key }}, path: ca-bundle.crt}]}}
{{- end }}
{{- end }}

{{- define "metier.env.redis" -}}
METIER_LANE_NAMESPACE: {{ .Values.redis.namespace | quote }}
METIER_REDIS_URL: { {{- include "metier.urlFrom" (dict "root" . "store" "redis") -}} }
{{- end }}

{{- define "metier.env.grant" -}}
METIER_GRANT_KEY: {secretKeyRef: {name: {{ default (printf "%s-grant" (include "metier.fullname" .)) .Values.grantKey.existingSecret }}, key: {{ ternary .Values.grantKey.key "grant-key" (not (empty .Values.grantKey.existingSecret)) }}}}
{{- end }}

{{- define "metier.env.topics" -}}
METIER_KAFKA_PARTITIONS: {{ .Values.topics.partitions | quote }}
METIER_KAFKA_REPLICATION: {{ ternary 1 .Values.topics.replication .Values.kafka.bundled.enabled | quote }}
{{- end }}
