{{- define "riskstream.name" -}}
{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "riskstream.selector" -}}
app.kubernetes.io/name: riskstream
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: worker
{{- end }}

{{- define "riskstream.qualitySelector" -}}
app.kubernetes.io/name: riskstream
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: quality
{{- end }}

{{/* The job under which Prometheus knows it: the rules and dashboards ask for it. */}}
{{- define "riskstream.endpoint" -}}
- port: http
  path: /metrics
  interval: {{ .root.Values.serviceMonitor.interval }}
  relabelings:
    - {targetLabel: job, replacement: {{ .job }}, action: replace}
    - {sourceLabels: [__meta_kubernetes_pod_name], targetLabel: instance, action: replace}
{{- end }}

{{- define "riskstream.labels" -}}
app.kubernetes.io/name: riskstream
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "riskstream.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The settings file: what the values say, and `settings` on top of it. */}}
{{- define "riskstream.settings" -}}
{{- $kafka := dict "bootstrap_servers" .Values.kafka.bootstrapServers "group" .Values.kafka.group "security_protocol" .Values.kafka.securityProtocol -}}
{{- if hasPrefix "SASL" .Values.kafka.securityProtocol -}}
{{- $_ := set $kafka "sasl_mechanism" .Values.kafka.saslMechanism -}}
{{- end -}}
{{- if .Values.kafka.tlsSecret -}}
{{- $_ := set $kafka "ssl_ca_file" "/etc/riskstream-tls/ca.crt" -}}
{{- if .Values.kafka.clientCertificate -}}
{{- $_ := set $kafka "ssl_cert_file" "/etc/riskstream-tls/tls.crt" -}}
{{- $_ := set $kafka "ssl_key_file" "/etc/riskstream-tls/tls.key" -}}
{{- end -}}
{{- end -}}
{{- $http := dict "host" "0.0.0.0" "port" 9100 -}}
{{- $scoring := dict -}}
{{- if .Values.bundle.volume -}}
{{- $_ := set $scoring "bundle" (printf "/bundles/%s" .Values.bundle.path) -}}
{{- end -}}
{{- range $name, $_ := .Values.files -}}
{{- if has $name (list "rates.yaml" "policy.yaml") -}}
{{- $_ := set $scoring (trimSuffix ".yaml" $name) (printf "/etc/riskstream/%s" $name) -}}
{{- end -}}
{{- end -}}
{{- $settings := dict "kafka" $kafka "http" $http "log" (dict "format" "json") -}}
{{- if $scoring -}}{{- $_ := set $settings "scoring" $scoring -}}{{- end -}}
{{- if .Values.quality.enabled -}}{{- $_ := set $settings "records" (dict "features" "sample") -}}{{- end -}}
{{ toYaml (mergeOverwrite $settings (deepCopy .Values.settings)) }}
{{- end }}

{{/* What no schema can say: refused before anything is made. */}}
{{- define "riskstream.check" -}}
{{- $most := ternary .Values.autoscaling.maxReplicas .Values.replicas .Values.autoscaling.enabled -}}
{{- if gt (int $most) (int .Values.kafka.partitions) -}}
{{- fail (printf "%d workers for %d partitions: the others would be idle and never ready. Lower replicas or autoscaling.maxReplicas, or correct kafka.partitions" (int $most) (int .Values.kafka.partitions)) -}}
{{- end -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas is more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and (hasPrefix "SASL" .Values.kafka.securityProtocol) (not .Values.kafka.saslSecret) -}}
{{- fail "kafka.securityProtocol is SASL_*: name the secret with username and password in kafka.saslSecret" -}}
{{- end -}}
{{- end }}

{{- define "riskstream.env" -}}
- name: RISKSTREAM_CONFIG
  value: /etc/riskstream/riskstream.yaml
- name: RISKSTREAM_REDIS__URL
  valueFrom: {secretKeyRef: {name: {{ .Values.redis.existingSecret }}, key: url}}
- name: RISKSTREAM_REDIS__KEY_SECRET
  valueFrom: {secretKeyRef: {name: {{ .Values.redis.existingSecret }}, key: key-secret}}
{{- with .Values.kafka.saslSecret }}
- name: RISKSTREAM_KAFKA__SASL_USERNAME
  valueFrom: {secretKeyRef: {name: {{ . }}, key: username}}
- name: RISKSTREAM_KAFKA__SASL_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ . }}, key: password}}
{{- end }}
{{- with .Values.bundle.signatureSecret }}
- name: RISKSTREAM_SCORING__SIGNATURE_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: key}}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "riskstream.mounts" -}}
- {name: settings, mountPath: /etc/riskstream, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if .Values.bundle.volume }}
- {name: bundles, mountPath: /bundles, readOnly: true}
{{- end }}
{{- if .Values.kafka.tlsSecret }}
- {name: tls, mountPath: /etc/riskstream-tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "riskstream.volumes" -}}
- name: settings
  configMap: {name: {{ include "riskstream.name" . }}}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- with .Values.bundle.volume }}
- name: bundles
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.kafka.tlsSecret }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 288}
{{- end }}
{{- end }}

{{- define "riskstream.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "riskstream.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "riskstream.placement" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
