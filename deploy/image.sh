#!/bin/sh
# Builds the image as an OCI archive, target/image/cert-renew-<arch>.tar, and says how large it is.
#
#   deploy/image.sh [amd64|arm64]
#
# The binary is static (musl, by cargo-zigbuild), so it is cross-compiled as easily as it is built, and lists what it is
# made of (cargo-auditable). buildah needs no daemon, and no privilege but root's: nothing is run inside the image. Neither a
# path of this machine nor the time is in what it makes; `make image-again` compares a second one to the byte.
set -eu
cd "$(dirname "$0")/.."

architecture=${1:-amd64}
case $architecture in
amd64) target=x86_64-unknown-linux-musl ;;
arm64) target=aarch64-unknown-linux-musl ;;
*)
    sed -n 's/^#   /usage: /p' "$0" >&2
    exit 2
    ;;
esac
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# In full: containerd (`ctr images import`) keeps a short name as it is, and the kubelet does not find it then.
name=docker.io/library/cert-renew:$version
largest=22500000
out=target/image
archive=$out/cert-renew-$architecture.tar
buildah=$(tests/tools.sh buildah)
zigbuild=$(tests/tools.sh cargo-zigbuild)
auditable=$(tests/tools.sh cargo-auditable)
roots=$(tests/tools.sh roots)

rustup target add "$target" >&2 || echo "image: no rustup here; the toolchain has to have $target" >&2
# No path of this machine and no time of day is in what it makes.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
export SOURCE_DATE_EPOCH=0
export RUSTFLAGS="--remap-path-prefix=$PWD=/cert-renew --remap-path-prefix=$cargo_home=/cargo"
export CFLAGS="-ffile-prefix-map=$PWD=/cert-renew -ffile-prefix-map=$cargo_home=/cargo"
# Two threads work, so that one arena does; what is free goes back to the kernel at once, and little is kept for a thread.
# Measured: 38 MiB with 100,000 Secrets instead of 43, and no slower. Kernels for arm64 have pages of up to 64 KiB.
export JEMALLOC_SYS_WITH_MALLOC_CONF="narenas:1,dirty_decay_ms:0,muzzy_decay_ms:0,lg_tcache_max:12"
[ "$architecture" = amd64 ] || export JEMALLOC_SYS_WITH_LG_PAGE=16
CARGO_ZIGBUILD_ZIG_PATH=$(dirname "$zigbuild")/../ziglang/zig PATH=$(dirname "$zigbuild"):$PATH \
    "$auditable" auditable zigbuild --release --locked --bin cert-renew --target "$target"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/context"
cp "target/$target/release/cert-renew" "$work/context/"
chmod 755 "$work/context/cert-renew"
install -m 644 "$roots" "$work/context/ca-certificates.crt"
# A store of our own, as plain directories: nothing is mounted, and nothing is left on the machine.
store="--storage-driver vfs --root $work/store --runroot $work/run"
# shellcheck disable=SC2086 # several arguments
"$buildah" $store build --quiet --isolation chroot --timestamp 0 --arch "$architecture" \
    --file deploy/Containerfile --tag "$name" "$work/context" >/dev/null
# As a directory first: in an archive of buildah's the time of day stands beside each file.
# shellcheck disable=SC2086
"$buildah" $store push --quiet "$name" "oci:$work/layout:$name"
tar -cf "$archive" -C "$work/layout" --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
    --mtime=@0 blobs index.json oci-layout

# What is inside, as it is in the layers: for `make image-check`, and to be measured.
rm -rf "$out/root-$architecture"
mkdir -p "$out/root-$architecture"
find "$work/layout/blobs" -type f | while read -r blob; do
    if gzip -t "$blob" 2>/dev/null; then
        tar -xzf "$blob" -C "$out/root-$architecture"
    fi
done
files=$(cd "$out/root-$architecture" && find . -type f | sort | tr '\n' ' ')
if [ "$files" != "./cert-renew ./etc/ssl/certs/ca-certificates.crt " ]; then
    echo "image: expected the binary and the root certificates, found: $files" >&2
    exit 1
fi
size=$(cd "$out/root-$architecture" && cat cert-renew etc/ssl/certs/ca-certificates.crt | wc -c)
compressed=$(stat -c %s "$archive")
echo "$archive: $name for $architecture, $size bytes uncompressed ($compressed as an archive)"
mkdir -p target/bench
case $architecture in
amd64) figure=image command="make image" ;;
*) figure=image-$architecture command="make image ARCH=$architecture" ;;
esac
printf '[{"name": "%s.bytes", "value": %s, "unit": "bytes", "command": "%s"}]\n' "$figure" "$size" "$command" \
    >"target/bench/$figure.json"
if [ "$size" -ge "$largest" ]; then
    echo "image: expected less than $largest bytes" >&2
    exit 1
fi
