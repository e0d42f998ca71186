{{/* The Deployment of a long-running role. Takes a dict:
     root, component, role (whose image it has), settings (its block of the values), container (its name), command;
     env (a list of pieces), mounts, volumes, waits and sidecars (text of list items), checksum (text of all that it reads);
     user, runtimeClassName, ownUsers (for an engine in the pod). */}}
{{- define "metier.role" -}}
{{- $values := .root.Values -}}
{{- $pod := mergeOverwrite (deepCopy $values.podDefaults) .settings.pod -}}
{{- $trust := dict "root" .root "own" .settings.trust -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "metier.name" . }}
  labels: {{- include "metier.labels" . | nindent 4 }}
spec:
  {{- if eq (dig "autoscaling" "type" "none" .settings) "none" }}
  replicas: {{ .settings.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  selector:
    matchLabels: {{- include "metier.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{- merge (include "metier.labels" . | fromYaml) $pod.labels | toYaml | nindent 8 }}
      annotations:
        {{- $ours := dict "kubectl.kubernetes.io/default-container" .container "checksum/config" (sha256sum .checksum) "checksum/secrets" (include "metier.secrets" .root | sha256sum) }}
        {{- merge $ours $pod.annotations | toYaml | nindent 8 }}
    spec:
      serviceAccountName: {{ include "metier.name" . }}
      {{- include "metier.pod" (dict "root" .root "component" .component "pod" $pod "user" .user) | nindent 6 }}
      {{- with .runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      {{- if .ownUsers }}
      hostUsers: false
      {{- end }}
      {{- include "metier.spread" . | nindent 6 }}
      terminationGracePeriodSeconds: {{ add $values.longestCallSeconds 30 }}
      {{- if or .waits .sidecars }}
      initContainers:
        {{- with .sidecars }}{{ . | nindent 8 }}{{ end }}
        {{- with .waits }}{{ . | nindent 8 }}{{ end }}
      {{- end }}
      containers:
        - name: {{ .container }}
          image: {{ include "metier.image" . }}
          imagePullPolicy: {{ $values.image.pullPolicy }}
          command: {{ toJson .command }}
          env: {{- include "metier.environment" (dict
            "env" (concat (list (include "metier.env.base" .root) (include "metier.env.role" .) (include "metier.env.trust" $trust)) .env)
            "more" (list $values.env .settings.env)) | trim | nindent 12 }}
          ports:
            - {name: http, containerPort: 8080}
          {{- include "metier.probes" . | nindent 10 }}
          lifecycle: {preStop: {sleep: {seconds: {{ $values.preStopSeconds }}}}}
          resources: {{- toYaml .settings.resources | nindent 12 }}
          securityContext: {{- include "metier.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            {{- with print .mounts (include "metier.trustMounts" $trust) | trim }}{{ . | nindent 12 }}{{ end }}
      volumes:
        - {name: tmp, emptyDir: {sizeLimit: 256Mi}}
        {{- with print .volumes (include "metier.trustVolumes" $trust) | trim }}{{ . | nindent 8 }}{{ end }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "metier.name" . }}
  labels: {{- include "metier.labels" . | nindent 4 }}
  {{- with $pod.serviceAccountAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- if $pod.disruptionBudget }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "metier.name" . }}
  labels: {{- include "metier.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- include "metier.selector" . | nindent 6 }}
{{- end }}
{{- end }}
