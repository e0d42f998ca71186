{{/* Takes (dict "root" $ "component" "…" "scaling" …). */}}
{{- define "metier.hpa" -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "metier.name" . }}
  labels: {{- include "metier.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ include "metier.name" . }}}
  minReplicas: {{ .scaling.minReplicas }}
  maxReplicas: {{ .scaling.maxReplicas }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ .scaling.cpuPercent }}}}
  behavior: {{- include "metier.scaleDown" .scaling | nindent 4 }}
{{- end }}

{{/* A pod that goes drains for minutes, and nobody can say which one goes: so one at a time. */}}
{{- define "metier.scaleDown" -}}
scaleDown:
  stabilizationWindowSeconds: {{ .scaleDownSeconds }}
  policies:
    - {type: Pods, value: 1, periodSeconds: {{ .scaleDownSeconds }}}
{{- end }}

{{/* Takes "triggers" too, as text, and "advanced": more of that block. Losing the metric never takes a pod away. */}}
{{- define "metier.scaledObject" -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ include "metier.name" . }}
  labels: {{- include "metier.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {name: {{ include "metier.name" . }}}
  pollingInterval: {{ .scaling.pollingSeconds }}
  minReplicaCount: {{ .scaling.minReplicas }}
  maxReplicaCount: {{ .scaling.maxReplicas }}
  fallback: {failureThreshold: 3, replicas: {{ .scaling.fallbackReplicas }}, behavior: currentReplicasIfHigher}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior: {{- include "metier.scaleDown" .scaling | nindent 8 }}
    {{- with .advanced }}{{ . | nindent 4 }}{{ end }}
  triggers: {{- .triggers | nindent 4 }}
{{- end }}

{{/* The lag of one agent's topic. It counts what is not committed, so calls in hand keep their pods; therefore no excludePersistentLag: a long call is no poison. */}}
{{- define "metier.lagTrigger" -}}
{{- $external := .root.Values.kafka.external -}}
{{- $prefix := .root.Values.kafka.prefix -}}
- type: kafka
  metricType: AverageValue
  metadata:
    bootstrapServers: {{ include "metier.bootstrap" .root | quote }}
    consumerGroup: {{ $prefix }}metier.agents.{{ .name }}
    topic: {{ $prefix }}metier.agents.{{ .name }}.tasks
    lagThreshold: {{ default .agent.concurrency .scaling.lagThreshold | quote }}
    offsetResetPolicy: earliest
    {{- if hasSuffix "SSL" $external.securityProtocol }}
    tls: enable
    {{- end }}
    {{- if hasPrefix "SASL" $external.securityProtocol }}
    sasl: {{ get (dict "PLAIN" "plaintext" "SCRAM-SHA-256" "scram_sha256" "SCRAM-SHA-512" "scram_sha512") $external.saslMechanism }}
    {{- end }}
  {{- if include "metier.kafkaLogin" .root }}
  authenticationRef: {name: {{ include "metier.fullname" .root }}-kafka}
  {{- end }}
{{- end }}

{{/* What KEDA shows to Kafka, as secretTargetRef; nothing where Kafka asks for nothing. */}}
{{- define "metier.kafkaLogin" -}}
{{- $external := .Values.kafka.external -}}
{{- $tls := $external.tls -}}
{{- if hasPrefix "SASL" $external.securityProtocol }}
{{- $secret := include "metier.kafkaSecret" (dict "root" . "user" "scaler" "default" $external.existingSecret) }}
- {parameter: username, name: {{ $secret }}, key: {{ $external.usernameKey }}}
- {parameter: password, name: {{ $secret }}, key: {{ $external.passwordKey }}}
{{- end }}
{{- if hasSuffix "SSL" $external.securityProtocol }}
{{- with $tls.caSecret }}
- {parameter: ca, name: {{ . }}, key: {{ $tls.caKey }}}
{{- end }}
{{- if $tls.clientSecret }}
{{- $secret := include "metier.kafkaSecret" (dict "root" . "user" "scaler" "default" $tls.clientSecret) }}
- {parameter: cert, name: {{ $secret }}, key: {{ $tls.certKey }}}
- {parameter: key, name: {{ $secret }}, key: {{ $tls.keyKey }}}
{{- end }}
{{- end }}
{{- end }}

{{/* Celery's queues, one a kind, and the hash of the calls that runners have in hand: what waits and what is worked on, together. */}}
{{- define "metier.queueTriggers" -}}
{{- $redis := .Values.redis -}}
{{- $keda := $redis.external.keda -}}
{{- $lists := dict "in_hand" "unacked" -}}
{{- range .Values.toolRunner.kinds }}{{ $_ := set $lists . (printf "tools.%s" .) }}{{ end -}}
{{- range $name, $list := $lists }}
- type: redis
  name: {{ $name }}
  metadata:
    address: {{ ternary (printf "%s:6379" (include "metier.address" (dict "root" $ "component" "redis"))) $keda.address $redis.bundled.enabled | quote }}
    listName: {{ $redis.namespace }}:{{ $list }}
    listLength: {{ include "metier.listThreshold" $ | quote }}
    databaseIndex: {{ $keda.database | quote }}
    {{- if $keda.tls }}
    enableTLS: "true"
    {{- end }}
  {{- if include "metier.redisLogin" $ }}
  authenticationRef: {name: {{ include "metier.fullname" $ }}-redis}
  {{- end }}
{{- end }}
{{- end }}

{{- define "metier.listThreshold" -}}
{{ default .Values.toolRunner.sandbox.limit .Values.toolRunner.autoscaling.listThreshold }}
{{- end }}

{{- define "metier.redisLogin" -}}
{{- $external := .Values.redis.external -}}
{{- if .Values.redis.bundled.enabled }}
- {parameter: password, name: {{ include "metier.fullname" . }}-redis, key: password}
{{- else if $external.keda.passwordKey }}
- {parameter: password, name: {{ $external.existingSecret }}, key: {{ $external.keda.passwordKey }}}
{{- end }}
{{- end }}
