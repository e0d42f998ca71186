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
{{- if include "metier.overSsh" . }}
- {name: passwd, mountPath: /etc/passwd, subPath: passwd, readOnly: true}
{{- end }}
{{- else }}
- {name: engine-socket, mountPath: /run/engine}
- {name: doors, mountPath: /run/doors}
{{- end }}
{{- end }}

{{/* Where the client looks for what lets it in: ssh in the home folder, which it learns from /etc/passwd alone. */}}
{{- define "metier.engineFolder" -}}
{{ ternary "/tmp/.ssh" "/etc/metier/engine" (eq "true" (include "metier.overSsh" .)) }}
{{- end }}

{{- define "metier.overSsh" -}}
{{- if and (eq .Values.toolRunner.engine.mode "remote") (hasPrefix "ssh://" .Values.toolRunner.engine.remote.host) }}true{{ end -}}
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
      - {key: {{ $remote.sshKeyKey }}, path: id_ed25519, mode: 0400}
      - {key: {{ $remote.knownHostsKey }}, path: known_hosts}
      {{- else }}
      - {key: {{ $remote.caKey }}, path: ca.pem}
      - {key: {{ $remote.certKey }}, path: cert.pem}
      - {key: {{ $remote.keyKey }}, path: key.pem}
      {{- end }}
{{- if include "metier.overSsh" . }}
- {name: passwd, configMap: {name: {{ include "metier.fullname" . }}-passwd}}
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
{{- if has $engine.mode (list "dind" "sysbox") }}
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
{{ include "metier.engineFetch" (dict "root" . "image" $engine.dockerImage "command" (list "docker" "--host=unix:///run/engine/engine.sock" "pull" "--quiet" .Values.toolRunner.sandbox.image)) }}
{{- else if eq $engine.mode "podman" }}
- name: engine
  image: {{ $engine.podmanImage }}
  restartPolicy: Always
  command: [podman, system, service, --time=0, "unix:///run/engine/engine.sock"]
  startupProbe:
    exec: {command: [podman, --remote, --url=unix:///run/engine/engine.sock, info]}
    periodSeconds: 2
    failureThreshold: 60
    timeoutSeconds: 5
  resources: {{- toYaml $engine.resources | nindent 4 }}
  securityContext:
    allowPrivilegeEscalation: true
    procMount: Unmasked
    seccompProfile: {type: Unconfined}
    capabilities: {drop: [ALL], add: [SETUID, SETGID]}
  volumeMounts:
    - {name: engine-storage, mountPath: /home/podman/.local/share/containers}
    - {name: engine-socket, mountPath: /run/engine}
    - {name: doors, mountPath: /run/doors}
{{ include "metier.engineFetch" (dict "root" . "image" $engine.podmanImage "command" (list "podman" "--remote" "--url=unix:///run/engine/engine.sock" "pull" "--quiet" .Values.toolRunner.sandbox.image)) }}
{{- end }}
{{- end }}

{{- define "metier.engineFetch" -}}
{{- $secret := .root.Values.toolRunner.engine.registrySecret -}}
- name: fetch-sandbox
  image: {{ .image }}
  command: {{ toJson .command }}
  env:
    - {name: HOME, value: /tmp}
    {{- if $secret }}
    - {name: DOCKER_CONFIG, value: /etc/metier/registry}
    - {name: REGISTRY_AUTH_FILE, value: /etc/metier/registry/config.json}
    {{- end }}
  resources: {{- toYaml .root.Values.commandResources | nindent 4 }}
  securityContext: {{- include "metier.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: engine-socket, mountPath: /run/engine}
    {{- if $secret }}
    - {name: registry, mountPath: /etc/metier/registry, readOnly: true}
    {{- end }}
{{- end }}
