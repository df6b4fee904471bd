# Paths that change while somebody looks: between two nodes UDP is let through late, and cut again.
# Arguments: the nixtail to test, an empty folder. Run under `unshare -rn`.
nixtail=$1 folder=$2
. tests/lab/script.sh

# once WORDS: the log of `left`, as it is without -v, has one line with these words
once() {
  [ "$(grep -cE "$1" "$folder/left.log")" = 1 ] || fail "not once: $1"
}

ip link set lo up
# One way alone, so that each change is one.
ip -6 addr flush dev lo
nft add table inet lab
nft add chain inet lab out '{ type filter hook output priority 0; }'
cut_udp() { nft add rule inet lab out meta l4proto udp drop; }
let_udp() { nft flush chain inet lab out; }

cut_udp
start_devnet
for name in left right; do
  "$nixtail" up --login-server "$(devnet_value login_server)" --hostname "$name" --socket "$folder/$name.sock" >"$folder/$name.log" 2>&1 &
  await "$name" grep -qs ^ready "$folder/$name.log"
done
unset TS_AUTHKEY
left() { "$nixtail" "$@" --socket "$folder/left.sock"; }
await "left to see right" sh -c "'$nixtail' status --socket '$folder/left.sock' | grep -q right"

left netcheck >"$folder/netcheck.log" || fail "netcheck without UDP: $?"
grep -q "^UDP *no answer" "$folder/netcheck.log" || fail "netcheck has UDP"

"$nixtail" ping right -c 60 --until-direct --socket "$folder/left.sock" >"$folder/ping.log" 2>&1 &
ping=$!
await "an answer by relay" grep -q "via DERP region 900 in" "$folder/ping.log"
let_udp
wait "$ping" || fail "the path never became direct: $(cat "$folder/ping.log")"
grep -qE "^the path is now 127.0.0.1:[0-9]+, before it was DERP region 900; after " "$folder/ping.log" || fail "ping doesn't tell of the direct path"
tail -n 1 "$folder/ping.log" | grep -qE "^pong from right .* via 127.0.0.1:[0-9]+ in " || fail "the last answer isn't direct"
await "the log's line" grep -qE "right: direct by 127.0.0.1:[0-9]+, before by DERP region 900$" "$folder/left.log"
left status | grep -qE "right .* (idle, last )?127.0.0.1:[0-9]+, [0-9.]+ ms" || fail "status doesn't show the direct path: $(left status)"

# Another file: the one before may still be there to be looked at.
"$nixtail" ping right -c 60 --socket "$folder/left.sock" >"$folder/again.log" 2>&1 &
ping=$!
await "an answer by UDP" grep -q "via 127.0.0.1" "$folder/again.log"
cut_udp
await "the relay again" grep -qE "^the path is now DERP region 900, before it was 127.0.0.1:[0-9]+; after " "$folder/again.log"
await "the log's line" grep -qE "right: by DERP region 900: the direct path by 127.0.0.1:[0-9]+ no longer answers" "$folder/left.log"
kill "$ping"
left status | grep -qE "right .* DERP region 900, [0-9.]+ ms" || fail "status doesn't show the relay: $(left status)"

once "home is DERP region 900 \(devnet\)"
once "the relay of DERP region 900 \(devnet\) is connected"
once "right: direct by"
once "right: .*no longer answers"
echo "path changes: all told"
