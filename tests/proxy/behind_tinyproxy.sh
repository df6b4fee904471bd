# A node behind a real HTTP proxy: control and the relay are reached through it alone, and it knows the node by its password.
# Only the proxy can resolve control's name, so who gets to control came through it; its log shows who asked for the relay.
# Arguments: the nixtail to test, an empty folder. Run under `unshare -rnm`.
nixtail=$1 folder=$2
. tests/lab/script.sh

mount --make-rprivate /
ip link set lo up
# Not a loopback address: those are never proxied.
ip addr add 192.0.2.1/32 dev lo

start_devnet --listen 192.0.2.1 --force
direct=$(devnet_value login_server)
port=${direct##*:}
control=http://control.test:$port

cat >"$folder/tinyproxy.conf" <<CONF
Port 3128
Listen 192.0.2.1
Timeout 600
LogFile "$folder/tinyproxy.log"
LogLevel Info
BasicAuth me open-sesame
CONF
{ cat /etc/hosts; echo "192.0.2.1 control.test"; } >"$folder/hosts"
unshare -m bash -c 'mount --bind "$1" /etc/hosts; exec tinyproxy -d -c "$2"' - "$folder/hosts" "$folder/tinyproxy.conf" >"$folder/tinyproxy.out.log" 2>&1 &
await "tinyproxy" grep -qs "Starting main loop" "$folder/tinyproxy.log"

# A node that is there already, without a proxy.
"$nixtail" up --login-server "$direct" --hostname other --socket "$folder/other.sock" >"$folder/other.log" 2>&1 &
await "the other node" grep -q ^ready "$folder/other.log"

refused() {
  local name=$1 words=$2
  shift 2
  ! env "$@" "$nixtail" up --login-server "$control" --hostname x --socket "$folder/x.sock" --timeout 3 >"$folder/$name.log" 2>&1 ||
    fail "$name: it joined"
  grep -q "$words" "$folder/$name.log" || fail "$name doesn't say: $words"
  ! grep -q sesame "$folder/$name.log" || fail "$name shows a password"
}
refused no-proxy "can't be reached" HTTPS_PROXY=
refused exempted "can't be reached" ALL_PROXY=http://me:open-sesame@192.0.2.1:3128 NO_PROXY=.test
refused wrong-password "HTTP 40[17]" ALL_PROXY=http://me:shut-sesame@192.0.2.1:3128
refused socks "SOCKS" ALL_PROXY=socks5://192.0.2.1:3128

ALL_PROXY=http://me:open-sesame@192.0.2.1:3128 "$nixtail" up -v --login-server "$control" --hostname behind \
  --socket "$folder/behind.sock" --no-direct >"$folder/behind.log" 2>&1 &
behind=$!
await "the node behind the proxy" grep -q ^ready "$folder/behind.log"
"$nixtail" ping --socket "$folder/behind.sock" --tsmp -c 2 other >"$folder/ping.log" 2>&1 || fail "no pong through the relay"
kill -INT "$behind"
wait "$behind" || fail "it didn't leave in peace"
! grep -q sesame "$folder/behind.log" || fail "its log shows a password"

grep -q "GET http://control.test:$port/key" "$folder/tinyproxy.log" || fail "the key didn't come through the proxy"
grep -q "CONNECT control.test:$port" "$folder/tinyproxy.log" || fail "ts2021 didn't come through the proxy"
[ "$(grep -o 'CONNECT 192.0.2.1:[0-9]*' "$folder/tinyproxy.log" | sort -u | wc -l)" = 1 ] || fail "the relay wasn't reached through the proxy"
echo "behind a proxy: all held"
