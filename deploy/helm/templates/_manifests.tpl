{{/*
The chart has no manifests of its own: manifests/ is copies of those that kustomize takes (`make chart` makes them, a test
compares them), and what an installation by Helm changes is changed here. So a role is written down once.

Each definition is given a dict of root (the context of the chart) and what it works on.
*/}}

{{/* Objects of the whole cluster are named after the namespace where that is another one than ours, so that two
     installations live side by side. */}}
{{- define "cert-renew.clusterName" -}}
{{- if eq .root.Release.Namespace "cert-renew" }}{{ .name }}{{ else }}{{ .name }}-{{ .root.Release.Namespace }}{{ end }}
{{- end }}

{{/* The text of a file, which must be there and whole: a chart that came without a part, with half of one, or with something
     else in its place, would install the others in silence. Line ends may be those of Windows. */}}
{{- define "cert-renew.text" -}}
{{- $sums := .root.Files.Get "manifests.sha256" }}
{{- if not $sums }}{{ fail "the chart is incomplete: manifests.sha256 is missing" }}{{ end }}
{{- $text := .root.Files.Get .path }}
{{- if not $text }}{{ fail (printf "the chart is incomplete: %s is missing" .path) }}{{ end }}
{{- $text = replace "\r\n" "\n" $text }}
{{- if not (contains (printf "%s  %s\n" (sha256sum $text) .path) (replace "\r\n" "\n" $sums)) }}
{{- fail (printf "the chart is incomplete: %s is cut off or changed: manifests.sha256 has another digest of it (make chart renews both)" .path) }}
{{- end }}
{{- $text }}
{{- end }}

{{/* All objects of a file. */}}
{{- define "cert-renew.file" -}}
{{- $root := .root }}
{{- range splitList "\n---\n" (include "cert-renew.text" .) }}
{{- include "cert-renew.object" (dict "root" $root "object" (fromYaml .)) }}
{{- end }}
{{- end }}

{{- define "cert-renew.object" -}}
{{- $root := .root }}
{{- $object := .object }}
{{- $namespaces := $root.Values.scope.namespaces }}
{{- range $object.subjects }}
{{- $_ := set . "namespace" $root.Release.Namespace }}
{{- end }}
{{- if and $namespaces (has $object.kind (list "ClusterRole" "ClusterRoleBinding")) (ne $object.metadata.name "cert-renew-access") }}
{{- /* The same rights, in each namespace. Reviews belong to no namespace, so that the add-on for them stays as it is. */ -}}
{{- $_ := set $object "kind" (trimPrefix "Cluster" $object.kind) }}
{{- $name := $object.metadata.name | replace "cert-renew" "cert-renew-watched" }}
{{- $_ := set $object.metadata "name" (include "cert-renew.clusterName" (dict "root" $root "name" $name)) }}
{{- if $object.roleRef }}
{{- $_ := set $object.roleRef "kind" "Role" }}
{{- $_ := set $object.roleRef "name" $object.metadata.name }}
{{- end }}
{{- range $namespaces }}
{{- $_ := set $object.metadata "namespace" . }}
---
{{ toYaml $object }}
{{- end }}
{{- else }}
{{- if $object.metadata.namespace }}
{{- $_ := set $object.metadata "namespace" $root.Release.Namespace }}
{{- else }}
{{- $_ := set $object.metadata "name" (include "cert-renew.clusterName" (dict "root" $root "name" $object.metadata.name)) }}
{{- end }}
{{- if eq (dig "roleRef" "kind" "" $object) "ClusterRole" }}
{{- $_ := set $object.roleRef "name" $object.metadata.name }}
{{- end }}
{{- if eq $object.kind "ValidatingAdmissionPolicyBinding" }}
{{- $_ := set $object.spec "policyName" $object.metadata.name }}
{{- if dig "paramRef" "namespace" "" $object.spec }}
{{- $_ := set $object.spec.paramRef "namespace" $root.Release.Namespace }}
{{- end }}
{{- end }}
{{- if and (eq $object.kind "ServiceAccount") (eq $object.metadata.name "cert-renew") $root.Values.serviceAccount.annotations }}
{{- $_ := set $object.metadata "annotations" $root.Values.serviceAccount.annotations }}
{{- end }}
{{- if and (eq $object.kind "NetworkPolicy") $object.spec.ingress }}
{{- $_ := set $object.spec "egress" (concat $object.spec.egress $root.Values.networkPolicy.egress) }}
{{- end }}
{{- if has $object.kind (list "PodMonitor" "ServiceMonitor") }}
{{- range concat (get $object.spec "podMetricsEndpoints" | default list) (get $object.spec "endpoints" | default list) }}
{{- $_ := merge . $root.Values.monitoring.endpoint }}
{{- end }}
{{- end }}
{{- if and (eq $object.kind "PrometheusRule") (ne $root.Release.Namespace "cert-renew") }}
{{- range $object.spec.groups }}
{{- range .rules }}
{{- $_ := set .annotations "description" (include "cert-renew.commands" (dict "namespace" $root.Release.Namespace "text" .annotations.description)) }}
{{- end }}
{{- end }}
{{- end }}
{{- if eq $object.kind "Deployment" }}
{{- include "cert-renew.deployment" (dict "root" $root "spec" $object.spec) }}
{{- end }}
---
{{ toYaml $object }}
{{ end }}
{{- end }}

{{/* The text of an alert, with the commands for an operator in another namespace. */}}
{{- define "cert-renew.commands" -}}
{{- $namespace := .namespace }}
{{- $text := replace "kubectl -n cert-renew " (printf "kubectl -n %s " $namespace) .text }}
{{- $secret := "{{ $labels.namespace }}/{{ $labels.secret }}" }}
{{- range list (printf "cert-renew describe %s" $secret) (printf "cert-renew resume %s" $secret) "cert-renew status -A" }}
{{- $text = replace . (printf "%s --operator-namespace %s" . $namespace) $text }}
{{- end }}
{{- $text }}
{{- end }}

{{/* Changes the Deployment in place; prints nothing. */}}
{{- define "cert-renew.deployment" -}}
{{- $values := .root.Values }}
{{- $template := .spec.template }}
{{- $pod := $template.spec }}
{{- $container := first $pod.containers }}
{{- if not (kindIs "invalid" $values.replicas) }}
{{- $_ := set .spec "replicas" $values.replicas }}
{{- end }}
{{- $tag := printf ":%s" ($values.image.tag | default .root.Chart.AppVersion) }}
{{- with $values.image.digest }}{{ $tag = printf "@%s" . }}{{ end }}
{{- $_ := set $container "image" (print $values.image.repository $tag) }}
{{- with $values.image.pullPolicy }}{{ $_ := set $container "imagePullPolicy" . }}{{ end }}
{{- with $values.resources }}{{ $_ := set $container "resources" . }}{{ end }}
{{- with $values.args }}{{ $_ := set $container "args" (concat $container.args .) }}{{ end }}
{{- with $values.env }}{{ $_ := set $container "env" (concat $container.env .) }}{{ end }}
{{- with $values.volumeMounts }}{{ $_ := set $container "volumeMounts" (concat $container.volumeMounts .) }}{{ end }}
{{- with $values.volumes }}{{ $_ := set $pod "volumes" (concat $pod.volumes .) }}{{ end }}
{{- range $key := list "imagePullSecrets" "nodeSelector" "tolerations" "affinity" "priorityClassName" "dnsPolicy" "dnsConfig" }}
{{- with get $values $key }}{{ $_ := set $pod $key . }}{{ end }}
{{- end }}
{{- with $values.podLabels }}{{ $_ := set $template.metadata "labels" (merge $template.metadata.labels .) }}{{ end }}
{{- with $values.podAnnotations }}{{ $_ := set $template.metadata "annotations" . }}{{ end }}
{{- end }}

{{/* The config file. */}}
{{- define "cert-renew.config" -}}
{{- if not (.Files.Get "config.yaml") }}{{ fail "the chart is incomplete: config.yaml is missing" }}{{ end }}
{{- $namespaces := .Values.scope.namespaces }}
{{- if or .Values.config $namespaces }}
{{- $config := deepCopy .Values.config }}
{{- if not $config }}{{ $config = .Files.Get "config.yaml" | fromYaml }}{{ end }}
{{- if hasKey $config "Error" }}{{ fail (printf "the chart is incomplete: config.yaml: %s" $config.Error) }}{{ end }}
{{- if $namespaces }}
{{- $watch := merge (dict "namespaces" $namespaces) (get $config "watch" | default dict) }}
{{- $_ := set $config "watch" $watch }}
{{- end }}
{{- toYaml $config }}
{{ else }}
{{- .Files.Get "config.yaml" }}
{{- end }}
{{- end }}
