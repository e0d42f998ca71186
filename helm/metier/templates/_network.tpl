{{/* One NetworkPolicy of one component. Takes (dict "root" $ "component" "…" "to" (list of destinations) "from" (list of rules as text)). */}}
{{- define "metier.networkPolicy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "metier.name" . }}
  labels: {{- include "metier.labels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels: {{- include "metier.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress:
    {{- with .root.Values.networkPolicy.metricsFrom }}
    {{- if $.metrics }}
    - from: {{- toYaml . | nindent 8 }}
      ports: [{protocol: TCP, port: 8080}]
    {{- end }}
    {{- end }}
    {{- with .from }}{{ . | nindent 4 }}{{ end }}
  egress:
    {{- range .to }}
    {{- include "metier.egress" (dict "root" $.root "to" .) | nindent 4 }}
    {{- end }}
{{- end }}

{{/* The way to one destination: the bundled store's pods, else what the values say. Takes (dict "root" $ "to" "kafka"). */}}
{{- define "metier.egress" -}}
{{- $rule := get .root.Values.networkPolicy.egress .to -}}
{{- $peers := $rule.to -}}
{{- $ports := $rule.ports -}}
{{- if and (has .to (list "kafka" "postgres" "redis")) (get .root.Values .to).bundled.enabled -}}
  {{- $peers = list (dict "podSelector" (dict "matchLabels" (include "metier.selector" (dict "root" .root "component" .to) | fromYaml))) -}}
{{- else if and (not $peers) (eq .to "dns") -}}
  {{- $peers = list (dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" "kube-system")) "podSelector" (dict "matchLabels" (dict "k8s-app" "kube-dns"))) -}}
{{- else if and (not $peers) (eq .to "models") -}}
  {{- $private := list "10.0.0.0/8" "100.64.0.0/10" "169.254.0.0/16" "172.16.0.0/12" "192.168.0.0/16" -}}
  {{- $peers = list (dict "ipBlock" (dict "cidr" "0.0.0.0/0" "except" $private)) (dict "ipBlock" (dict "cidr" "::/0" "except" (list "fc00::/7" "fe80::/10"))) -}}
{{- end -}}
- ports:
    {{- range $ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- if eq $.to "dns" }}
    - {protocol: UDP, port: {{ . }}}
    {{- end }}
    {{- end }}
  {{- with $peers }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* Who may come to a bundled store: the components that use it. Takes (dict "root" $ "users" (list …) "port" 5432). */}}
{{- define "metier.ingress" -}}
- ports: [{protocol: TCP, port: {{ .port }}}]
  from:
    {{- range .users }}
    - podSelector:
        matchLabels: {{- include "metier.selector" (dict "root" $.root "component" .) | nindent 10 }}
    {{- end }}
{{- end }}
