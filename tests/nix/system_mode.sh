# A multi-user Nix in a mount namespace of its own: root's daemon, an ordinary user's build, the coordinator in system mode.
# Arguments: the nixtail to test, a static busybox, an empty folder. Run under `unshare -mpf --mount-proc`.
set -euo pipefail
nixtail=$1 busybox=$2 place=$3
mkdir "$place"/{etc-nix,ssh_config.d,nix}
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind "$place/nix" /nix
mount --bind "$place/etc-nix" /etc/nix
mount --bind "$place/ssh_config.d" /etc/ssh/ssh_config.d
mkdir -p /run/home /run/bin /run/nixtail /run/builder /run/expression/bb
cp "$nixtail" /run/bin/nixtail
cp "$busybox" /run/expression/bb/busybox
export HOME=/run/home PATH=/run/bin:$PATH TMPDIR=/run/home
cat >/etc/nix/nix.conf <<'C'
build-users-group =
sandbox = false
substituters =
max-jobs = 0
builders = @/etc/nix/machines
C
printf 'ssh-ng://mine x86_64-linux - 1 1 nothing nothing' >/etc/nix/machines
cp /etc/nix/machines /run/machines.before
chown 65534 /etc/nix/machines
before=$(stat -c '%i %u %a' /etc/nix/machines)
printf 'build-users-group =\nsubstituters =\nmax-jobs = 2\n' >/run/builder/nix.conf
cat >/run/expression/default.nix <<'C'
let tools = builtins.path { path = ./bb; name = "tools"; };
in derivation {
  name = "system-mode"; system = builtins.currentSystem; builder = "${tools}/busybox";
  args = [ "sh" "-euc" "echo built > $out" ];
}
C

within() { # seconds, command…
  local seconds=$1
  shift
  for _ in $(seq $((seconds * 10))); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done
  echo "not within $seconds s: $*" >&2
  return 1
}

nix-daemon 2>/run/daemon.log &
nixtail devnet --allow-all >/run/devnet.out 2>/run/devnet.err &
within 20 grep -q ready /run/devnet.out
export $(sed 's/^ready//' /run/devnet.out)
within 20 test -S /nix/var/nix/daemon-socket/socket
NIX_CONF_DIR=/run/builder nixtail builder --hostname system-builder --socket /run/builder/sock --store "$place/builder-store" &
builder=$!
nixtail coordinator --hostname system-coordinator --socket /run/nixtail/sock --builders system-builder --mode system --background
grep -q '^ssh-ng://mine ' /etc/nix/machines
grep -q '^ssh-ng://localhost?remote-program=/run/nixtail/sock.run/builders/system-builder ' /etc/nix/machines
[ -z "$(ls -A /etc/ssh/ssh_config.d)" ] # root's ssh isn't told of what it isn't used for

output=$(setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/nonexistent TMPDIR=/tmp NIX_REMOTE=daemon \
  nix-build /run/expression --no-out-link)
[ "$(cat "$output")" = built ]

status=0
nixtail coordinator --hostname second --socket /run/second/sock --builders system-builder --mode system 2>/run/second.err || status=$?
[ "$status" = 78 ]
grep -q 'another coordinator' /run/second.err
grep -q 'builders/system-builder ' /etc/nix/machines

nixtail stop-nix-builders --socket /run/nixtail/sock
wait "$builder"
nixtail down --socket /run/nixtail/sock
cmp /etc/nix/machines /run/machines.before
[ "$(stat -c '%i %u %a' /etc/nix/machines)" = "$before" ]
[ "$(ls -A /etc/nix)" = "$(printf 'machines\nnix.conf')" ]
[ -z "$(ls -A /etc/ssh/ssh_config.d)" ]
[ -z "$(ls -A /run/nixtail)" ]
echo "system mode: all held"
