{{- define "muslin.image" -}}
{{ .root.Values.image.prefix }}-{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "muslin.secret" -}}
{{ .Values.etcd.tls.existingSecret | default "muslin-etcd-secrets" }}
{{- end }}

{{- /* How to reach etcd, the same for all programs. */ -}}
{{- define "muslin.etcdEnv" -}}
{{- range $variable, $key := dict "ETCD_ENDPOINTS" "etcd_endpoints" "ETCD_CA_CERT_FILE" "etcd_ca" "ETCD_CERT_FILE" "etcd_cert" "ETCD_KEY_FILE" "etcd_key" }}
- name: {{ $variable }}
  valueFrom: {configMapKeyRef: {name: muslin-config, key: {{ $key }}}}
{{- end }}
{{- end }}

{{- define "muslin.env" -}}
{{- range $name, $value := . }}
{{- if $value }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "muslin.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- /* what both containers of the uninstaller have */}}
{{- define "muslin.uninstall" }}
securityContext: {privileged: true, readOnlyRootFilesystem: true}
volumeMounts:
- {name: cni-bin-dir, mountPath: /host/opt/cni/bin}
- {name: cni-net-dir, mountPath: /host/etc/cni/net.d}
- {name: run-muslin, mountPath: /run/muslin}
- {name: var-lib-calico, mountPath: /var/lib/calico}
- {name: var-log-calico, mountPath: /var/log/calico}
- {name: xtables-lock, mountPath: /run/xtables.lock}
{{- end }}
