{{/* A store of one replica for an evaluation: no backups, no failover. Takes a dict: root, component, bundled (its block of the values), port, user,
     command, env, mounts, volumes (text of list items), data (where it keeps what it keeps), ready (a command, or nothing: the port answers). */}}
{{- define "metier.bundled" -}}
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ include "metier.name" . }}
  labels: {{- include "metier.labels" . | nindent 4 }}
spec:
  serviceName: {{ include "metier.name" . }}
  replicas: 1
  selector:
    matchLabels: {{- include "metier.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{- include "metier.labels" . | nindent 8 }}
      annotations:
        checksum/secrets: {{ include "metier.secrets" .root | sha256sum }}
        checksum/config: {{ .mounts | print .command | sha256sum }}
    spec:
      serviceAccountName: {{ include "metier.name" . }}
      {{- include "metier.pod" (dict "root" .root "component" .component "pod" .root.Values.podDefaults "user" .user) | nindent 6 }}
      terminationGracePeriodSeconds: 60
      containers:
        - name: {{ .component }}
          image: {{ .bundled.image }}
          {{- with .command }}
          command: {{ toJson . }}
          {{- end }}
          env: {{- .env | nindent 12 }}
          ports:
            - {name: {{ .component }}, containerPort: {{ .port }}}
          startupProbe: {{- include "metier.storeProbe" . | nindent 12 }}
            periodSeconds: 3
            failureThreshold: 60
          readinessProbe: {{- include "metier.storeProbe" . | nindent 12 }}
            periodSeconds: 10
          livenessProbe:
            tcpSocket: {port: {{ .component }}}
            periodSeconds: 20
            failureThreshold: 6
          resources: {{- toYaml .bundled.resources | nindent 12 }}
          securityContext: {{- include "metier.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - {name: data, mountPath: {{ .data }}}
            - {name: tmp, mountPath: /tmp}
            {{- .mounts | nindent 12 }}
      volumes:
        - {name: tmp, emptyDir: {sizeLimit: 256Mi}}
        {{- .volumes | nindent 8 }}
  volumeClaimTemplates:
    - metadata:
        name: data
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .bundled.storageClassName }}
        storageClassName: {{ . }}
        {{- end }}
        resources: {requests: {storage: {{ .bundled.storage }}}}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ include "metier.name" . }}
  labels: {{- include "metier.labels" . | nindent 4 }}
spec:
  clusterIP: None
  publishNotReadyAddresses: {{ default false .early }}
  selector: {{- include "metier.selector" . | nindent 4 }}
  ports:
    - {name: {{ .component }}, port: {{ .port }}, targetPort: {{ .component }}}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "metier.name" . }}
  labels: {{- include "metier.labels" . | nindent 4 }}
automountServiceAccountToken: false
{{- end }}

{{- define "metier.storeProbe" -}}
{{- if .ready }}
exec: {command: {{ toJson .ready }}}
timeoutSeconds: 5
{{- else }}
tcpSocket: {port: {{ .component }}}
{{- end }}
{{- end }}
