# Two nodes, each in a namespace of its own, with two links between them and one to control, which forwards nothing. A stream goes
# on while the addresses that it goes through are taken away, one after another, and given back.
# Arguments: the nixtail to test, an empty folder. Run under `unshare -rnm`.
nixtail=$1 folder=$2 patience=400
. tests/lab/script.sh
state() { in_a ip addr; in_a ip route; in_b ip addr; in_b ip route; }

mount --make-rprivate /
mount -t sysfs sysfs /sys
unshare -n sleep 1000 & a=$!
unshare -n sleep 1000 & b=$!
in_a() { nsenter -t $a -n "$@"; }
in_b() { nsenter -t $b -n "$@"; }
own_namespace() { [ "$(readlink /proc/$1/ns/net)" != "$(readlink /proc/self/ns/net)" ]; }
await "the first namespace" own_namespace $a
await "the second namespace" own_namespace $b

ip link set lo up
ip addr add 192.0.2.1/32 dev lo
for side in a b; do
  pid=$a && [ $side = a ] || pid=$b
  n=1 && [ $side = a ] || n=2
  ip link add control-$side type veth peer name control netns $pid
  ip addr add 10.9.$n.1/24 dev control-$side
  ip link set control-$side up
  nsenter -t $pid -n ip link set lo up
  nsenter -t $pid -n ip addr add 10.9.$n.2/24 dev control
  nsenter -t $pid -n ip link set control up
  nsenter -t $pid -n ip route add 192.0.2.1 via 10.9.$n.1
done
for link in 1 2; do
  in_a ip link add link$link type veth peer name link$link netns $b
  for side in a b; do
    n=1 && [ $side = a ] || n=2
    in_$side ip addr add 10.$link.0.$n/24 dev link$link
    in_$side ip -6 addr add fd0$link::$n/64 dev link$link nodad
    in_$side ip link set link$link up
  done
done

start_devnet --listen 192.0.2.1 --force
TS_CONTROL_URL=$(devnet_value login_server)
export TS_CONTROL_URL
nsenter -t $b -n "$nixtail" bench serve -vv --hostname far --socket "$folder/far.sock" >"$folder/far.log" 2>&1 &
nsenter -t $a -n "$nixtail" up -vv --hostname near --socket "$folder/near.sock" >"$folder/near.log" 2>&1 &
await "the far node" grep -q '^ready' "$folder/far.log"
await "the near node" grep -q '^ready' "$folder/near.log"

# The path as a ping on it tells: an address without its port, or a relay.
path() {
  in_a "$nixtail" ping far -c 1 --timeout 1 --socket "$folder/near.sock" 2>/dev/null |
    sed -n 's/^pong .* via \(.*\) in .*/\1/p' | sed 's/:[0-9]*$//'
}
path_is() { [ "$(path)" = "$1" ]; }
path_is_direct() { case $(path) in 10.*.0.2 | '[fd0'?'::2]') ;; *) false ;; esac; }
# other_than PATH: there is one, and it isn't that
other_than() {
  local now
  now=$(path)
  [ -n "$now" ] && [ "$now" != "$1" ]
}

# Which of the four is the first depends on who answers faster; they are all the same distance.
await "a direct path" path_is_direct

# A stream that goes on through what follows.
nsenter -t $a -n "$nixtail" bench run far -vv --hostname stream --duration 15s --json >"$folder/stream.json" 2>"$folder/stream.log" &
stream=$!
await "the stream" grep -q ": direct by" "$folder/stream.log"
sleep 1

# The address that the path leaves by is taken away, until none is left; the third time, with its whole link.
for round in 1 2 3 4; do
  now=$(path)
  case $now in
  10.*) link=${now#10.} link=${link%%.*} address="addr del 10.$link.0.1/24 dev link$link" ;;
  '[fd0'*) link=${now#'[fd0'} link=${link%%:*} address="-6 addr del fd0$link::1/64 dev link$link" ;;
  *) fail "no direct path is left in round $round, but: $now" ;;
  esac
  [ "$round" != 3 ] || address="link set link$link down"
  in_a ip $address
  await "another path than $now" other_than "$now"
  [ "$round" != 3 ] || path_is_direct || break
done
await "the relay, as no link is left" path_is 'DERP region 900'
for link in link1 link2; do
  in_a ip addr flush dev $link
  in_a ip link set $link up
done
in_a ip addr add 10.2.0.77/24 dev link2
await "the path from a new address" path_is 10.2.0.2
in_a ip -6 addr add fd01::88/64 dev link1 nodad
wait $stream || fail "the stream broke: $(tail -n 3 "$folder/stream.log")"
cat "$folder/stream.json"
grep -q '"bytes"' "$folder/stream.json" || fail "no measurement"
echo "figure: the stream's path changed $(grep -c ", before by" "$folder/stream.log") times"

# IPv6 inside the tunnel, over IPv6 outside.
in_a ip -4 addr flush dev link1
in_a ip -4 addr flush dev link2
far6=$("$nixtail" ip -6 --socket "$folder/far.sock")
in_a "$nixtail" bench run "$far6" --hostname stream6 --direction download --duration 1s --json >"$folder/stream6.json" 2>"$folder/stream6.log" ||
  fail "no stream over IPv6"
cat "$folder/stream6.json"
grep -q 'fd0[12]::2' "$folder/stream6.json" || fail "the stream over IPv6 took another path"
echo "two links: all held"
