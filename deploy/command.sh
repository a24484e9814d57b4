#!/bin/sh
# Builds the command for a system that the image is not for: target/command/SYSTEM/cert-renew, with .exe on Windows.
#
#   deploy/command.sh windows-amd64|darwin-amd64|darwin-arm64
#
# For Windows it is cross-compiled as the image's program is; what needs a unix is not in it: `run`, and the width of the
# terminal. For macOS it takes a Mac: Apple's frameworks come with its SDK alone. Neither has a path of this machine in it.
set -eu
cd "$(dirname "$0")/.."

system=${1:-}
program=cert-renew
case $system in
windows-amd64) target=x86_64-pc-windows-gnu program=cert-renew.exe ;;
darwin-amd64) target=x86_64-apple-darwin ;;
darwin-arm64) target=aarch64-apple-darwin ;;
*)
    sed -n 's/^#   /usage: /p' "$0" >&2
    exit 2
    ;;
esac
rustup target add "$target" >&2 || echo "command: no rustup here; the toolchain has to have $target" >&2
cargo_home=${CARGO_HOME:-$HOME/.cargo}
export SOURCE_DATE_EPOCH=0
export RUSTFLAGS="--remap-path-prefix=$PWD=/cert-renew --remap-path-prefix=$cargo_home=/cargo"
export CFLAGS="-ffile-prefix-map=$PWD=/cert-renew -ffile-prefix-map=$cargo_home=/cargo"
case $system in
darwin-*)
    if [ "$(uname)" != Darwin ]; then
        echo "command: the frameworks of macOS are on a Mac only: run it there" >&2
        exit 1
    fi
    cargo build --release --locked --bin cert-renew --target "$target"
    ;;
*)
    zigbuild=$(tests/tools.sh cargo-zigbuild)
    CARGO_ZIGBUILD_ZIG_PATH=$(dirname "$zigbuild")/../ziglang/zig PATH=$(dirname "$zigbuild"):$PATH \
        "$zigbuild" zigbuild --release --locked --bin cert-renew --target "$target"
    ;;
esac
mkdir -p "target/command/$system"
cp "target/$target/release/$program" "target/command/$system/"
echo "target/command/$system/$program: $(wc -c <"target/command/$system/$program") bytes"
