# What `nixtail builder --print-facts` finds on machines that differ: users and root, daemons, stores, limits and refusals.
# Arguments: the nixtail to test, an empty folder. Run as root under `unshare -mpf --mount-proc`.
set -euo pipefail
nixtail=$1 place=$2
mkdir "$place"/{etc-nix,nix,bob}
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind "$place/nix" /nix
mount --bind "$place/etc-nix" /etc/nix
mkdir -p /run/bin /run/etc
cp "$nixtail" /run/bin/nixtail

# Accounts of its own: bob, and the users that root's daemon builds as.
cp /etc/passwd /etc/group /run/etc
sed -i '/^nixbld/d; /^bob:/d' /run/etc/passwd /run/etc/group
printf 'bob:x:2002:2002::%s:/bin/sh\nnixbld1:x:30001:30000::/var/empty:/bin/false\nnixbld2:x:30002:30000::/var/empty:/bin/false\n' \
  "$place/bob" >>/run/etc/passwd
printf 'bob:x:2002:\nnixbld:x:30000:nixbld1,nixbld2\n' >>/run/etc/group
mount --bind /run/etc/passwd /etc/passwd
mount --bind /run/etc/group /etc/group
chown 2002:2002 "$place/bob"
chmod 755 "$place" /run/bin

daemon=
daemon_with() { # lines of nix.conf…
  printf '%s\n' 'build-users-group = nixbld' 'substituters =' "$@" >/etc/nix/nix.conf
  if [ -n "$daemon" ]; then kill "$daemon" && wait "$daemon" || true; fi
  nix-daemon 2>>/run/daemon.log &
  daemon=$!
  for _ in $(seq 200); do
    # It answers, and not only has left a socket behind.
    NIX_REMOTE=daemon nix --extra-experimental-features nix-command store ping >/dev/null 2>&1 && return 0
    sleep 0.1
  done
  echo "no daemon" >&2
  return 1
}
as_bob() { setpriv --reuid 2002 --regid 2002 --clear-groups env -i PATH="$PATH" HOME="$place/bob" "$@"; }
as_root() { env -i PATH="$PATH" HOME=/root "$@"; }
facts() { # who, what it must exit with, flags…
  local who=$1 wanted=$2 status=0
  shift 2
  echo "-- $who $*" >>/run/log
  "$who" /run/bin/nixtail builder --print-facts --json "$@" >/run/facts 2>/run/words || status=$?
  cat /run/words /run/facts >>/run/log
  [ "$status" = "$wanted" ] || { echo "facts: $who $*: exit $status, not $wanted" >&2; tail -80 /run/log >&2; return 1; }
}
has() { for pattern; do tr -d ' \n' </run/facts | grep -q -e "$pattern" || { echo "no $pattern:" >&2; cat /run/facts /run/words >&2; return 1; }; done; }
lacks() { ! tr -d ' \n' </run/facts | grep -q -e "$1" || { echo "$1:" >&2; cat /run/facts >&2; return 1; }; }
says() { grep -q -e "$1" /run/words || { echo "not said: $1" >&2; cat /run/words >&2; return 1; }; }

# The daemon's user, trusted or not, let in or not.
daemon_with
facts as_bob 78
says "doesn't trust bob"
says 'trusted-users = root bob'
has '"kind":"not-trusted"' '"trusted":false'
daemon_with 'allowed-users = root' 
facts as_bob 78
has '"kind":"not-allowed"'
daemon_with 'trusted-users = root bob' 'builders = ssh-ng://elsewhere'
facts as_bob 0 --build-timeout 1h
has '"trusted":true' '"login":"bob"' '"store_access":"daemon"' '"store_on_disk":"/nix/store"' '"sandbox":true'
# Nix 2.8 relays bytes; from 2.20 on it passes settings on, as a client of the daemon.
passes=0
tr -d ' \n' </run/facts | grep -q '"settings_reach_builds":false' || passes=1
if [ "$passes" = 0 ]; then
  has '"kind":"limits-ignored"' '"kind":"forwards"' '"timeout_seconds":null'
else
  has '"timeout_seconds":3600'
fi
[ "$(stat -c %a /dev/kvm 2>/dev/null)" = 666 ] || lacks 'kvm\|nixos-test'

# Root opens the store itself, and what it is given holds.
facts as_root 0 --build-timeout 90s --max-silent-time 1m --cores 3 --max-jobs 5
has '"store_access":"direct"' '"settings_reach_builds":true' '"timeout_seconds":90' '"max_silent_seconds":60'
has '"cores_per_build":3' '"max_jobs":5' '"trusted":true' '"problems":\[\]'
# Where the device opens for root alone, it doesn't for builds.
[ "$(stat -c %a /dev/kvm 2>/dev/null)" = 666 ] || lacks 'kvm\|nixos-test'

# Where builds run as root, it does for them, too.
mkdir /run/of-root
facts as_root 0 --store /run/of-root --min-free-disk 1MiB --extra-nix-config 'build-users-group ='
if [ -c /dev/kvm ] && (exec 3<>/dev/kvm) 2>/dev/null; then has '"kvm"' '"nixos-test"'; else lacks 'kvm\|nixos-test'; fi

# A daemon that builds nothing, unless it is told otherwise.
daemon_with 'trusted-users = root bob' 'max-jobs = 0'
if [ "$passes" = 0 ]; then
  facts as_bob 78
  has '"kind":"no-jobs"'
else
  facts as_bob 0
fi
facts as_root 0

# A socket that nobody listens on.
kill "$daemon" && wait "$daemon" || true
daemon=
[ -S /nix/var/nix/daemon-socket/socket ]
facts as_bob 78
has '"kind":"no-daemon"'

# Stores of bob's own: a chroot store, one of another name, one that the environment names.
facts as_bob 0 --store "$place/bob/store"
has '"trusted":true' "\"remote_store\":\"$place/bob/store\"" "\"store_on_disk\":\"$place/bob/store\"" '"sandbox":true'
facts as_bob 0 --private-store "$place/bob/private"
has "\"store_folder\":\"$place/bob/private/store\"" '"remote_store":null' '"store_access":"direct"'
as_bob_elsewhere() { as_bob NIX_STORE_DIR="$place/bob/other/store" NIX_STATE_DIR="$place/bob/other/state" NIX_LOG_DIR="$place/bob/other/log" "$@"; }
facts as_bob_elsewhere 0
has "\"store_folder\":\"$place/bob/other/store\""
[ -d "$place/bob/other/state/db" ]

# Another Nix, by the path of its daemon.
facts as_bob 0 --store "$place/bob/store" --nix-daemon "$(command -v nix-daemon)"
facts as_bob 78 --store "$place/bob/store" --nix-daemon /nowhere/nix-daemon

# Affinity and control groups.
as_bob_on_one() { as_bob taskset -c 0 "$@"; }
facts as_bob_on_one 0 --store "$place/bob/store"
has '"cores":1,'
group=/sys/fs/cgroup/memory/nixtail-facts-$$
if mkdir "$group" 2>/dev/null; then
  echo 3221225472 >"$group/memory.limit_in_bytes"
  limited() { bash -c 'echo $$ >"$0/cgroup.procs"; exec "$@"' "$group" env -i PATH="$PATH" HOME=/root "$@"; }
  facts limited 0
  rmdir "$group"
  has '"memory_bytes":3221225472'
fi

# A user that isn't here is a warning.
facts as_bob 0 --store "$place/bob/store" --login nobody-here
has '"kind":"no-such-login"' '"fatal":false' '"login":"nobody-here"'

# A disk that is too small, and one that is full.
mkdir /run/small && mount -t tmpfs -o size=40M,mode=777 tmpfs /run/small
facts as_bob 78 --store /run/small/store
has '"kind":"disk-full"'
says 'min-free-disk'
# The same before joining: nobody is asked for a login.
status=0
as_bob TS_AUTHKEY=none /run/bin/nixtail builder --login-server http://127.0.0.1:9 --socket "$place/bob/sock" \
  --store /run/small/store 2>/run/words || status=$?
[ "$status" = 78 ]
says 'min-free-disk'
facts as_bob 0 --store /run/small/store --min-free-disk 1MiB
head -c 100M /dev/zero >/run/small/filler 2>/dev/null || true
facts as_bob 78 --store /run/small/new --min-free-disk 0
has '"kind":"disk-full"'

# A store that can't be written.
rm /nix/var/nix/daemon-socket/socket
mount --bind /nix /nix && mount -o remount,bind,ro /nix
rm -rf /run/small/filler
facts as_root 78
has '"kind":"store-not-writable"'
facts as_bob 78
has '"kind":"store-not-writable"'
umount /nix

# No user namespaces: they are refused to whoever has another root than its mount namespace.
mkdir /run/root && mount --rbind / /run/root
in_chroot() { chroot /run/root setpriv --reuid 2002 --regid 2002 --clear-groups env -i PATH="$PATH" HOME="$place/bob" "$@"; }
facts in_chroot 78 --store "$place/bob/store"
has '"kind":"namespaces-refused"'
says 'private-store'
mount -t tmpfs tmpfs /run/root/nix
facts in_chroot 78 --store "$place/bob/store"
has '"kind":"namespaces-refused"'
# Without a sandbox, a store of another name still works.
facts in_chroot 0 --private-store "$place/bob/private" 
has '"kind":"no-sandbox"' '"sandbox":false'
umount -l /run/root

# Nothing of the trials is left but a shell by its content's name.
left=$(ls "$place/nix/store" | grep -v -e '-nixtail-probe-tools$' -e '^\.links$' -e '-nixtail-look.lock$' || true)
[ -z "$left" ] || { echo "left: $left" >&2; exit 1; }
[ "$(ls "$place/nix/store" | grep -c -e -nixtail-look.lock)" -le 1 ]
echo "builder facts: all held"
