#!/bin/sh
# gloo's reduce and broadcast of 10⁶ parameters between "machines" with slow links: network
# namespaces of this machine, each behind a virtual switch. Linux; needs root (unshare, ip, tc).
#
#     unshare --net --mount sh benchmarks/emulated_network.sh WORKERS [MBIT]
#
# All of it is inside the namespaces that unshare makes, and ends with them.
set -e
workers=$1
mbit=${2:-400}
python=${PYTHON:-python}

mount -t tmpfs none /run/netns 2>/dev/null || { mkdir -p /run/netns; mount -t tmpfs none /run/netns; }
ip link add name bridge0 type bridge
ip link set dev bridge0 up
last=$((workers - 1))
for rank in $(seq 0 $last); do
    ip netns add "w$rank"
    ip link add "port$rank" type veth peer name eth0 netns "w$rank"
    ip link set dev "port$rank" master bridge0 up
    ip -n "w$rank" addr add "10.9.0.$((rank + 1))/24" dev eth0
    ip -n "w$rank" link set dev lo up
    ip -n "w$rank" link set dev eth0 up
    # Both directions of the link, as a full-duplex one has them.
    tc -n "w$rank" qdisc add dev eth0 root tbf rate "${mbit}mbit" burst 128kb limit 20mb
    tc qdisc add dev "port$rank" root tbf rate "${mbit}mbit" burst 128kb limit 4mb
done
for rank in $(seq 0 $last); do
    GLOO_SOCKET_IFNAME=eth0 OMP_NUM_THREADS=1 ip netns exec "w$rank" \
        "$python" benchmarks/collectives.py --join "$rank" "$workers" 10.9.0.1 &
done
wait
