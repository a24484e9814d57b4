#!/bin/sh
# Publishes what `make release` has made twice: image and chart to the registry, the files to the release; signs each without
# a key of ours, by the identity of the workflow. It cannot run on a machine of somebody's: there is no identity to sign by.
#
#   deploy/publish.sh VERSION    release-VERSION is in target/published/release, and its checksums.txt in
#                                target/published/again/release-VERSION; GH_TOKEN, REGISTRY_USER and REGISTRY_PASSWORD are set
set -eu
cd "$(dirname "$0")/.."

version=${1:?}
registry=ghcr.io/cert-renew
files=target/published/release/release-$version
cmp "$files/checksums.txt" "target/published/again/release-$version/checksums.txt"
(cd "$files" && sha256sum --check --quiet checksums.txt)

echo "$REGISTRY_PASSWORD" | skopeo login --username "$REGISTRY_USER" --password-stdin ghcr.io
skopeo copy --all --digestfile target/published/digest \
    "oci-archive:$files/cert-renew-$version-image.tar" "docker://$registry/cert-renew:$version"
digest=$(cat target/published/digest)
printf 'IMAGE_DIGEST=%s\nRELEASE_FILES=%s\n' "$digest" "$files" >>"${GITHUB_ENV:-/dev/null}"
echo "$REGISTRY_PASSWORD" | cosign login --username "$REGISTRY_USER" --password-stdin ghcr.io
cosign sign --yes --recursive "$registry/cert-renew@$digest"

helm=$(tests/tools.sh helm)
echo "$REGISTRY_PASSWORD" | "$helm" registry login --username "$REGISTRY_USER" --password-stdin ghcr.io
chart=$("$helm" push "$files/cert-renew-$version.tgz" "oci://$registry/charts" 2>&1 | sed -n 's/^Digest: *//p')
printf 'CHART_DIGEST=%s\n' "$chart" >>"${GITHUB_ENV:-/dev/null}"
cosign sign --yes "$registry/charts/cert-renew@$chart"

cosign sign-blob --yes --bundle "$files/checksums.txt.sigstore.json" "$files/checksums.txt"
gh release create "v$version" --verify-tag --title "cert-renew $version" --notes-file "$files/NOTES.md" "$files"/*
