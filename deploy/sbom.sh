#!/bin/sh
# What the binary is made of, as CycloneDX. As the image, it holds neither a path of this machine nor the time.
#
#   deploy/sbom.sh amd64|arm64|windows-amd64|darwin-amd64|darwin-arm64 FILE
set -eu
cd "$(dirname "$0")/.."
case $1 in
amd64) target=x86_64-unknown-linux-musl ;;
arm64) target=aarch64-unknown-linux-musl ;;
windows-amd64) target=x86_64-pc-windows-gnu ;;
darwin-amd64) target=x86_64-apple-darwin ;;
darwin-arm64) target=aarch64-apple-darwin ;;
*)
    sed -n 's/^#   /usage: /p' "$0" >&2
    exit 2
    ;;
esac
SOURCE_DATE_EPOCH=0 "$(tests/tools.sh cargo-cyclonedx)" cyclonedx --format json --no-build-deps \
    --target "$target" --override-filename cert-renew.cdx
mkdir -p "$(dirname "$2")"
sed "s#file://$PWD#file:///cert-renew#g" cert-renew.cdx.json >"$2"
rm -f cert-renew.cdx.json core/cert-renew.cdx.json tests/*/cert-renew.cdx.json
echo "$(grep -c '"bom-ref"' "$2") components in $2"
