{{/* The container engine in the runner's pod: a native sidecar, so that it outlives the runner, and what fetches the sandbox image into it. */}}

{{- define "metier.env.engine" -}}
{{- $engine := .Values.toolRunner.engine -}}
{{- if ne $engine.mode "remote" -}}
DOCKER_HOST: unix:///run/engine/engine.sock
TMPDIR: /run/doors
{{- else -}}
DOCKER_HOST: {{ $engine.remote.host | quote }}
{{- if hasPrefix "tcp://" $engine.remote.host }}
DOCKER_CERT_PATH: /etc/metier/engine
DOCKER_TLS_VERIFY: "1"
{{- end }}
{{- end }}
{{- end }}

{{- define "metier.engineMounts" -}}
{{- if eq .Values.toolRunner.engine.mode "remote" }}
- {name: engine-access, mountPath: {{ include "metier.engineFolder" . }}, readOnly: true}
{{- else }}
- {name: engine-socket, mountPath: /run/engine}
- {name: doors, mountPath: /run/doors}
{{- end }}
{{- end }}

{{/* Where the client looks for what lets it in: over SSH in the home folder. */}}
{{- define "metier.engineFolder" -}}
{{ ternary "/tmp/.ssh" "/etc/metier/engine" (hasPrefix "ssh://" .Values.toolRunner.engine.remote.host) }}
{{- end }}

{{- define "metier.engineVolumes" -}}
{{- $engine := .Values.toolRunner.engine -}}
{{- $remote := $engine.remote -}}
{{- if eq $engine.mode "remote" }}
- name: engine-access
  secret:
    secretName: {{ $remote.existingSecret }}
    defaultMode: 0440
    items:
      {{- if hasPrefix "ssh://" $remote.host }}
      - {key: {{ $remote.sshKeyKey }}, path: id_ed25519}
      - {key: {{ $remote.knownHostsKey }}, path: known_hosts}
      {{- else }}
      - {key: {{ $remote.caKey }}, path: ca.pem}
      - {key: {{ $remote.certKey }}, path: cert.pem}
      - {key: {{ $remote.keyKey }}, path: key.pem}
      {{- end }}
{{- else }}
- {name: engine-socket, emptyDir: {sizeLimit: 16Mi}}
- {name: doors, emptyDir: {sizeLimit: 64Mi}}
- name: engine-storage
  emptyDir:
    sizeLimit: {{ $engine.storage }}
{{- with $engine.registrySecret }}
- {name: registry, secret: {secretName: {{ . }}, defaultMode: 0440, items: [{key: .dockerconfigjson, path: config.json}]}}
{{- end }}
{{- end }}
{{- end }}

{{- define "metier.engineSidecars" -}}
{{- $engine := .Values.toolRunner.engine -}}
{{- if ne $engine.mode "remote" }}
- name: engine
  image: {{ $engine.dockerImage }}
  restartPolicy: Always
  command: [dockerd-entrypoint.sh]
  args: [dockerd, --host=unix:///run/engine/engine.sock, --group=10001, --bridge=none, --iptables=false, --ip6tables=false, --ip-forward=false]
  env:
    - {name: DOCKER_TLS_CERTDIR, value: ""}
  startupProbe:
    exec: {command: [docker, --host=unix:///run/engine/engine.sock, info]}
    periodSeconds: 2
    failureThreshold: 60
    timeoutSeconds: 5
  resources: {{- toYaml $engine.resources | nindent 4 }}
  securityContext:
    runAsNonRoot: false
    runAsUser: 0
    runAsGroup: 0
    {{- if eq $engine.mode "dind" }}
    privileged: true
    {{- end }}
  volumeMounts:
    - {name: engine-storage, mountPath: /var/lib/docker}
    - {name: engine-socket, mountPath: /run/engine}
    - {name: doors, mountPath: /run/doors}
{{ include "metier.engineFetch" . }}
{{- end }}
{{- end }}

{{- define "metier.engineFetch" -}}
{{- $engine := .Values.toolRunner.engine -}}
- name: fetch-sandbox
  image: {{ $engine.dockerImage }}
  command: [docker, --host=unix:///run/engine/engine.sock, pull, --quiet, {{ .Values.toolRunner.sandbox.image | quote }}]
  env:
    - {name: HOME, value: /tmp}
    {{- if $engine.registrySecret }}
    - {name: DOCKER_CONFIG, value: /etc/metier/registry}
    {{- end }}
  resources: {{- toYaml .Values.commandResources | nindent 4 }}
  securityContext: {{- include "metier.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: engine-socket, mountPath: /run/engine}
    {{- if $engine.registrySecret }}
    - {name: registry, mountPath: /etc/metier/registry, readOnly: true}
    {{- end }}
{{- end }}
