#!/bin/sh
# Copies what the chart is made of into deploy/helm/: the same files that kustomize takes, so that a role is written once.
# Files rather than links, since Flux's GitRepository, zip archives and some Windows checkouts leave links out.
# A test holds the copies equal; `make chart` makes them.
set -eu
cd "$(dirname "$0")"

chart=helm
rm -rf "$chart/manifests"
mkdir -p "$chart/manifests/rbac/addons" "$chart/manifests/monitoring" "$chart/manifests/admission" "$chart/manifests/verify"
cp config.yaml "$chart/config.yaml"
cp monitoring/dashboard.json "$chart/dashboard.json"
cp deployment.yaml networkpolicy.yaml poddisruptionbudget.yaml services.yaml "$chart/manifests/"
cp ../rbac/*.yaml "$chart/manifests/rbac/"
cp ../rbac/addons/*.yaml "$chart/manifests/rbac/addons/"
cp monitoring/podmonitor.yaml monitoring/prometheusrule.yaml monitoring/service/servicemonitor.yaml "$chart/manifests/monitoring/"
cp admission/*.yaml "$chart/manifests/admission/"
cp verify/networkpolicy.yaml "$chart/manifests/verify/"
find "$chart/manifests" -name kustomization.yaml -delete
# The templates take a file only if it is whole: one that was cut off at the end of an object would install the rest in silence.
(cd "$chart" && find manifests dashboard.json -type f | LC_ALL=C sort | xargs sha256sum) >"$chart/manifests.sha256"
