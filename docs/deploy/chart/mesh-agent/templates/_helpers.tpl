{{- define "mesh-agent.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "mesh-agent.labels" -}}
app.kubernetes.io/part-of: mesh-agent
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "mesh-agent.caAddress" -}}
{{ .Values.ca.address | default (printf "mesh-agent-ca.%s.svc:15012" .Release.Namespace) }}
{{- end }}

{{- define "mesh-agent.apiServer" -}}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .Values.apiServer.host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .Values.apiServer.port | quote }}
{{- end }}
