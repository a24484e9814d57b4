#!/bin/sh
# Prepares the network, mount and pid namespace that a real node runs in, then becomes the program that is given. Everything
# ends with that program: what it mounts, its interfaces and its processes; its cgroups are removed by who started it.
#
#   inside.sh DIRECTORY CGROUP ADDRESS PROGRAM [ARGUMENT…]
set -eu
directory=$1 cgroup=$2 address=$3
shift 3

cannot() {
    echo "node: this machine does not allow it: $*" >&2
    exit 1
}

# What containerd and the kubelet write to fixed places goes to the directory.
mkdir -p "$directory/log"
mount -t tmpfs tmpfs /run || cannot "mounting a tmpfs"
mount --bind "$directory/log" /var/log || cannot "bind mounts"
mkdir -p "$directory/probe/upper" "$directory/probe/work" "$directory/probe/merged"
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$directory/probe/upper,workdir=$directory/probe/work" \
    "$directory/probe/merged" || cannot "overlayfs"
umount "$directory/probe/merged"

# The kubelet sets these for the whole machine and does not start where it cannot: let it set files that nobody reads.
for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys \
    kernel/keys/root_maxbytes; do
    file=$directory/sysctl-$(echo "$setting" | tr / -)
    cat "/proc/sys/$setting" >"$file"
    mount --bind "$file" "/proc/sys/$setting" || cannot "a mount over /proc/sys/$setting"
done

# A default route, so that addresses of Services are routed somewhere before kube-proxy translates them.
ip link set lo up
ip link add node0 type veth peer name node1 || cannot "veth pairs"
ip addr add "$address/24" dev node0
ip link set node0 up
ip link set node1 up
ip route add default dev node0
echo 1 >/proc/sys/net/ipv4/ip_forward || cannot "forwarding"
nft list ruleset >/dev/null || cannot "nftables"

# Version 1 has a hierarchy for each controller, version 2 one for all.
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir "/sys/fs/cgroup/$cgroup" || cannot "cgroups"
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
        echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || true
        echo "+$controller" >"/sys/fs/cgroup/$cgroup/cgroup.subtree_control" || true
    done
else
    for hierarchy in /sys/fs/cgroup/*/; do
        mkdir "$hierarchy$cgroup" || cannot "cgroups in $hierarchy"
        # Without these no process may enter it.
        for setting in cpuset.cpus cpuset.mems; do
            if [ -e "$hierarchy$setting" ]; then
                cat "$hierarchy$setting" >"$hierarchy$cgroup/$setting"
            fi
        done
    done
fi
exec "$@"
