#!/bin/sh
# An internet with two sites, each a router and a host behind it, in network namespaces (see sites.rs).
#
#   sites.sh up LEFT RIGHT   makes them, says `ready`, and waits: it is the first process of namespaces of its own
#   sites.sh flush SIDE      the router of that side forgets whom it translated and let through
#   sites.sh move SIDE       that side gets another public address
#   sites.sh part | join     no UDP passes between the sites any more | it does again
#
# A site is one of these; with `+wall`, its router lets in answers only, as almost every router does:
#   open      no NAT: the host has a public address
#   easy      the router translates and keeps ports where it can
#   hard      the router translates to a random port for each destination
#   forward   as hard, and the port 41641 leads to the host
#
#   left 192.168.1.2 - router 192.0.2.2 ---\
#                                           internet 203.0.113.1, 203.0.113.2
#   right 192.168.1.3 - router 198.51.100.2 /
#
# Both sites use the same private network, as homes do.
set -eu

PORT=41641

# within PLACE COMMAND: in that network namespace
within() {
  place=$1
  shift
  nsenter --net="/run/netns/$place" "$@"
}

# The first three bytes of a side's public addresses.
public() { case $1 in left) echo 192.0.2 ;; right) echo 198.51.100 ;; esac; }
host() { case $1 in left) echo 2 ;; right) echo 3 ;; esac; }

# rules SIDE SITE ADDRESS: the router's, where its host has that address
rules() {
  case $2 in
    easy*) masquerade='oifname wan masquerade' ;;
    hard* | forward*) masquerade='oifname wan masquerade random,fully-random' ;;
    *) masquerade= ;;
  esac
  case $2 in forward*) forward="iifname wan udp dport $PORT dnat to $3:$PORT" ;; *) forward= ;; esac
  case $2 in
    *+wall)
      policy=drop
      known='iifname { lan, lo } accept
        ct state established,related accept
        ct status dnat accept'
      ;;
    *) policy=accept known= ;;
  esac
  cat <<END
table ip site {
  chain in {
    type nat hook prerouting priority dstnat
    $forward
  }
  chain out {
    type nat hook postrouting priority srcnat
    $masquerade
  }
  chain through {
    type filter hook forward priority filter; policy $policy
    $known
  }
  chain here {
    type filter hook input priority filter; policy $policy
    $known
  }
}
END
}

# site SIDE KIND
site() {
  side=$1 kind=${2%+wall} net=$(public "$1")
  ip netns add "$side"
  ip netns add "router-$side"
  case $kind in
    open) gateway=$net.129 address=$net.130 bits=25 ;;
    *) gateway=192.168.1.1 address=192.168.1.$(host "$side") bits=24 ;;
  esac
  ip -batch - <<END
link add $side netns internet type veth peer name wan netns router-$side
link add lan netns router-$side type veth peer name lan netns $side
END
  ip -n internet -batch - <<END
address add $net.1/25 dev $side
link set $side up
route add $net.128/25 via $net.2
END
  ip -n "router-$side" -batch - <<END
link set lo up
address add $net.2/25 dev wan
link set wan up
address add $gateway/$bits dev lan
link set lan up
route add default via $net.1
END
  ip -n "$side" -batch - <<END
link set lo up
address add $address/$bits dev lan
link set lan up
route add default via $gateway
END
  within "router-$side" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
  rules "$side" "$2" "$address" | within "router-$side" nft -f -
}

case $1 in
  up)
    # Names of network namespaces that are ours alone.
    mount -t tmpfs tmpfs /run
    mkdir /run/netns
    ip netns add internet
    ip -n internet -batch - <<END
link set lo up
address add 203.0.113.1/32 dev lo
address add 203.0.113.2/32 dev lo
END
    within internet sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
    site left "$2"
    site right "$3"
    echo ready
    exec sleep infinity
    ;;
  flush) within "router-$2" conntrack -F ;;
  move)
    net=$(public "$2")
    if ip -n "$2" address show dev lan | grep -qF "$net."; then
      # Without NAT it is the host's own address.
      ip -n "$2" -batch - <<END
address del $net.130/25 dev lan
address add $net.131/25 dev lan
route add default via $net.129
END
    else
      ip -n "router-$2" -batch - <<END
address del $net.2/25 dev wan
address add $net.3/25 dev wan
route add default via $net.1
END
    fi
    ;;
  part)
    within internet nft -f - <<END
table ip apart {
  chain forward {
    type filter hook forward priority filter
    iifname { left, right } oifname { left, right } meta l4proto udp drop
  }
}
END
    ;;
  join) within internet nft delete table ip apart ;;
  *)
    echo "sites.sh: no such command: $1" >&2
    exit 2
    ;;
esac
