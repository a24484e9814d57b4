#!/bin/sh
# Makes, in target/dist, what is installed without a copy of this repository: install.yaml, one file for `kubectl apply -f`,
# and the chart's archive. Twice the same bytes: no time and no path of this machine is in them.
#
#   deploy/dist.sh [IMAGE [DIRECTORY]]
#
# IMAGE is the name of the image without its version; what a release publishes where none is given.
set -eu
cd "$(dirname "$0")/.."

image=${1:-ghcr.io/cert-renew/cert-renew}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
out=${2:-target/dist}
kubectl=$(tests/tools.sh kubectl)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/tree"

# A kustomization on top, as docs/install.md has it, in a copy: kustomize takes no absolute paths.
cp -R deploy rbac "$work/tree/"
mkdir "$work/tree/overlay"
cat >"$work/tree/overlay/kustomization.yaml" <<EOF
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../deploy]
images: [{name: cert-renew, newName: $image, newTag: $version}]
EOF
{
    echo "# cert-renew $version: kubectl apply -f install.yaml"
    echo "# The ConfigMap cert-renew-config is an example: say in it which CA to ask, and who may have which names. Edit it in this"
    echo "# file: applying the file again puts back what it says."
    "$kubectl" kustomize "$work/tree/overlay"
} >"$out/install.yaml"

# As `helm package` has it, but for the time of day.
cp -R deploy/helm "$work/cert-renew"
sed -i "s#^  repository: .*#  repository: $image#; s#^  \# There is no published image yet: name yours.#  \# Where the image is.#" \
    "$work/cert-renew/values.yaml"
sed -i "s#^helm install cert-renew deploy/helm #helm install cert-renew oci://${image%/*}/charts/cert-renew --version $version #
    /^image: {repository: registry.example.com/d; s#names your image and says#says#" "$work/cert-renew/README.md"
# For Artifact Hub: the image that the chart installs, and what a version has changed. The annotations end the file.
{
    printf '  artifacthub.io/images: |\n    - name: cert-renew\n      image: %s\n' "$image:$version"
    if changes=$(deploy/changes.sh "$version"); then
        printf '  artifacthub.io/changes: |\n'
        printf '%s\n' "$changes" | sed 's/^/    /'
    fi
} >>"$work/cert-renew/Chart.yaml"
tar -C "$work" --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime=@0 \
    -cf - cert-renew | gzip -n -9 >"$out/cert-renew-$version.tgz"

(cd "$out" && sha256sum install.yaml "cert-renew-$version.tgz")
