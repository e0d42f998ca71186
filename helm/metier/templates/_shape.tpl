{{/* Every level of the values and what stands on it, but for texts that may be empty, for which null does as well. A test holds it to values.yaml. */}}
{{- define "metier.shape" -}}
values: image agentDefaults agentFiles orchestrator toolRunner api migrations topics doctor kafka postgres redis grantKey trust files longestCallSeconds preStopSeconds logLevel env commandResources otel podDefaults networkPolicy test metrics
image: repository digests pullPolicy pullSecrets
agentDefaults: file modelKeys trust replicas concurrency autoscaling env resources pod
agentDefaults.trust: key
agentDefaults.autoscaling: type minReplicas maxReplicas cpuPercent lagThreshold fallbackReplicas scaleDownSeconds pollingSeconds
orchestrator: replicas workflows env resources pod
toolRunner: replicas engine sandbox kinds secrets blobs autoscaling env resources pod
toolRunner.engine: mode acknowledgePrivileged remote dockerImage runtimeClassName storage resources
toolRunner.engine.remote: caKey certKey keyKey sshKeyKey knownHostsKey
toolRunner.sandbox: image pool limit
toolRunner.autoscaling: type minReplicas maxReplicas cpuPercent listThreshold fallbackReplicas scaleDownSeconds pollingSeconds
api: enabled
migrations: mode waitSeconds
topics: mode waitSeconds partitions replication
doctor: enabled timeoutSeconds
kafka: external bundled
kafka.external: securityProtocol saslMechanism users usernameKey passwordKey tls
kafka.external.tls: caKey certKey keyKey
kafka.bundled: enabled image storage resources
postgres: external bundled
postgres.external: urlKey tls
postgres.external.tls: caKey
postgres.bundled: enabled image storage resources
redis: namespace external bundled
redis.external: urlKey keda
redis.external.keda: database tls
redis.bundled: enabled image storage resources
grantKey: key
trust: key
files: safety tools
otel: resourceAttributes
podDefaults: annotations labels nodeSelector tolerations affinity serviceAccountAnnotations disruptionBudget
networkPolicy: enabled metricsFrom egress
networkPolicy.egress: dns kafka postgres redis otlp models engine
networkPolicy.egress.dns: to ports
networkPolicy.egress.kafka: to ports
networkPolicy.egress.postgres: to ports
networkPolicy.egress.redis: to ports
networkPolicy.egress.otlp: to ports
networkPolicy.egress.models: to ports
networkPolicy.egress.engine: to ports
test: enabled workflow input timeoutSeconds
metrics: podMonitor serviceMonitor prometheusRule dashboards
metrics.podMonitor: enabled interval scrapeTimeout labels
metrics.serviceMonitor: enabled interval scrapeTimeout labels
metrics.prometheusRule: enabled labels
metrics.dashboards: enabled labels annotations
{{- end }}

{{/* Helm takes away what is set to null, and a name with nothing behind its colon is null too. Nothing that is read here may be gone. */}}
{{- define "metier.checkShape" -}}
{{- range $line := include "metier.shape" . | trim | splitList "\n" -}}
  {{- $level := $line | splitList ": " | first -}}
  {{- $values := $.Values -}}
  {{- $path := "" -}}
  {{- if ne $level "values" -}}
    {{- range splitList "." $level -}}{{- $values = get $values . -}}{{- end -}}
    {{- $path = printf "%s." $level -}}
  {{- end -}}
  {{- range $name := $line | splitList ": " | last | splitList " " -}}
    {{- if or (not (hasKey $values $name)) (kindIs "invalid" (get $values $name)) -}}
      {{- fail (printf "%s%s is null, which takes away what the chart has there. Set it to what you mean, or leave it out" $path $name) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end }}
