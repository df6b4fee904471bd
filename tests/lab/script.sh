# What the tests' scripts share that run in namespaces of their own. They source it as:
#   nixtail=PROGRAM folder=EMPTY_FOLDER . tests/lab/script.sh
# `patience` is how many tenths of a second `await` tries; `state`, if the script has it, shows more of a failure.
# shellcheck shell=bash
set -euo pipefail
: "${nixtail:?the nixtail to test}" "${folder:?an empty folder}" "${patience:=600}"
export HOME=$folder XDG_RUNTIME_DIR=$folder
unset NIXTAIL_LOG HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy

# Each job must be the program itself, not a shell around it, so that none outlives the script.
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT

fail() {
  echo "FAILED: $*"
  ! declare -F state >/dev/null || state
  tail -n 40 "$folder"/*.log
  exit 1
}

# await WHAT COMMAND...: until it succeeds; says how long that took
await() {
  local what=$1 begun=$EPOCHREALTIME tries=0
  shift
  until "$@"; do
    tries=$((tries + 1))
    [ "$tries" -lt "$patience" ] || fail "waited in vain for $what"
    sleep 0.1
  done
  echo "figure: $what after $(((${EPOCHREALTIME/./} - ${begun/./}) / 1000)) ms"
}

# start_devnet OPTION...: and gives its key to what is started then
start_devnet() {
  "$nixtail" devnet --allow-all --json "$@" >"$folder/devnet.json" 2>"$folder/devnet.log" &
  await "the devnet" grep -q auth_key "$folder/devnet.json"
  TS_AUTHKEY=$(devnet_value auth_key)
  export TS_AUTHKEY
}

# devnet_value NAME: what it said of itself
devnet_value() { tr -d ' \n' <"$folder/devnet.json" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
