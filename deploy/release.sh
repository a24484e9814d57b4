#!/bin/sh
# Makes everything that a release publishes, in target/release-VERSION. Publishes nothing: RELEASING.md has the rest.
#
#   deploy/release.sh VERSION [IMAGE]    with DARWIN=DIRECTORY also the command for macOS, from what `make command` has made
#                                        on a Mac: DIRECTORY/darwin-amd64/cert-renew and DIRECTORY/darwin-arm64/cert-renew
#
# From a clean tree, and twice the same bytes: neither a path of this machine nor the time is in what it makes.
set -eu
cd "$(dirname "$0")/.."

version=${1-}
image=${2:-ghcr.io/cert-renew/cert-renew}
if [ -z "$version" ]; then
    sed -n 's/^#   /usage: /p' "$0" >&2
    exit 2
fi
fail() {
    echo "release: $*" >&2
    exit 1
}

# What names the version names this one, and what is built is what is committed.
[ -z "$(git status --porcelain)" ] || fail "the tree is not clean: commit first"
for place in Cargo.toml:version Chart.yaml:version Chart.yaml:appVersion kustomization.yaml:newTag krew.yaml:version; do
    case $place in
    Cargo.toml:version) said=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1) ;;
    Chart.yaml:*) said=$(sed -n "s/^${place#*:}: //p" deploy/helm/Chart.yaml) ;;
    kustomization.yaml:newTag) said=$(sed -n 's/^ *newTag: //p' deploy/kustomization.yaml) ;;
    krew.yaml:version) said=$(sed -n 's/^  version: v//p' deploy/krew.yaml) ;;
    esac
    [ "$said" = "$version" ] || fail "$place is \"$said\", expected $version"
done
for file in examples/*/kustomization.yaml; do
    grep -q "newTag: $version}" "$file" || fail "$file names another version of the image, expected $version"
done
stale=$(grep -rnE 'no published image|not released yet' README.md docs || true)
[ -z "$stale" ] || fail "these lines say that nothing is published:
$stale"
notes=$(deploy/notes.sh "$version") || fail "CHANGELOG.md has no section $version"

out=target/release-$version
rm -rf "$out"
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '%s\n' "$notes" >"$out/NOTES.md"

pack() {
    archive=$1
    directory=$2
    shift 2
    tar -C "$directory" --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime=@0 \
        -cf - "$@" | gzip -n -9 >"$archive"
}

# The image and the command of each architecture: the same file.
for architecture in amd64 arm64; do
    deploy/image.sh "$architecture"
    mkdir "$work/$architecture" "$work/command-$architecture"
    tar -C "$work/$architecture" -xf "target/image/cert-renew-$architecture.tar"
    cp "target/image/root-$architecture/cert-renew" LICENSE "$work/command-$architecture/"
    pack "$out/cert-renew-$version-linux-$architecture.tar.gz" "$work/command-$architecture" cert-renew LICENSE
    deploy/sbom.sh "$architecture" "$out/cert-renew-$version-linux-$architecture.cdx.json"
done

# The command alone for the other systems.
deploy/command.sh windows-amd64
systems="linux-amd64 linux-arm64 windows-amd64"
if [ -n "${DARWIN:-}" ]; then
    systems="$systems darwin-amd64 darwin-arm64"
else
    echo "release: without the command for macOS: DARWIN names no directory that has it" >&2
fi
for system in $systems; do
    case $system in
    linux-*) continue ;;
    darwin-*) made=$DARWIN ;;
    *) made=target/command ;;
    esac
    mkdir "$work/command-$system"
    cp "$made/$system"/cert-renew* LICENSE "$work/command-$system/"
    chmod 755 "$work/command-$system"/cert-renew*
    program=$(cd "$work/command-$system" && ls cert-renew*)
    pack "$out/cert-renew-$version-$system.tar.gz" "$work/command-$system" "$program" LICENSE
    deploy/sbom.sh "$system" "$out/cert-renew-$version-$system.cdx.json"
done

# The image of both architectures.
deploy/index.sh "$image:$version" "$work/amd64" "$work/arm64" "$work/index"
tar -C "$work/index" --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime=@0 \
    -cf "$out/cert-renew-$version-image.tar" blobs index.json oci-layout

# Manifests and chart.
deploy/dist.sh "$image" >/dev/null
cp target/dist/install.yaml "$out/install.yaml"
cp "target/dist/cert-renew-$version.tgz" "$out/cert-renew-$version.tgz"

# The manifest for Krew, filled in.
base=https://github.com/cert-renew/cert-renew/releases/download/v$version
cp deploy/krew.yaml "$out/krew.yaml"
for system in $systems; do
    name=cert-renew-$version-$system.tar.gz
    sum=$(sha256sum "$out/$name" | cut -d ' ' -f 1)
    sed -i "s#<address of the archive for $system>#$base/$name#" "$out/krew.yaml"
    # The sum stands in the line after the address.
    sed -i "\\#$base/$name#{n;s#<its SHA-256>#$sum#}" "$out/krew.yaml"
done
# A platform that was not made is left out: from its selector to the line before the next one.
for system in darwin-amd64 darwin-arm64; do
    os=${system%-*} arch=${system#*-}
    if grep -q "<address of the archive for $system>" "$out/krew.yaml"; then
        sed -i "/selector: {matchLabels: {os: $os, arch: $arch}}/,/from: LICENSE/d" "$out/krew.yaml"
    fi
done
sed -i '/^# The template of/d; /^# the address and the SHA-256/d' "$out/krew.yaml"
if grep -n '[<>]' "$out/krew.yaml" | grep -v '[|>]-\{0,1\}$'; then
    fail "krew.yaml is not filled in"
fi

(cd "$out" && sha256sum -- * >checksums.txt)
echo "$out:"
cat "$out/checksums.txt"
