# The first process of a node (see nixnode.rs), in mount and pid namespaces of its own: puts a root together in which all
# that a Nix and its users write is the node's, and waits in it. Nothing of the machine, or of a side root, can be written.
# Arguments: the root to stand on, the node's folder, the nixtail to offer there, and `alone` in a network namespace of its own.
set -euo pipefail
[ "${4:-}" != alone ] || ip link set lo up
root=$1 folder=$2 nixtail=$3 at=$2/mnt
# Our own number as the machine counts: its /proc is still there.
read -r pid _ </proc/self/stat

mount --make-rprivate /
mkdir -p "$at"
if [ "$root" = / ]; then mount --rbind / "$at"; else mount --bind "$root" "$at"; fi
mount -o remount,bind,ro "$at"
# The machine's may be covered in part, and then the kernel gives no user namespace a /proc.
mount -t proc proc "$at/proc"
if [ "$root" != / ]; then
  mount --rbind /dev "$at/dev"
  mount --rbind /sys "$at/sys"
fi
mount -t tmpfs -o mode=755 tmpfs "$at/run"
mkdir -p "$at"/run/{bin,user,lock}
for user in 0 2001 2002; do install -d -m 700 -o "$user" -g "$user" "$at/run/user/$user"; done
touch "$at/run/bin/nixtail"
mount --bind "$nixtail" "$at/run/bin/nixtail"
for own in nix etc/nix etc/ssh home root tmp; do mount --bind "$folder/$own" "$at/$own"; done

# Two ordinary users, and the build users of a multi-user Nix.
for file in passwd group shadow; do
  grep -vE '^(alice|bob|nixbld)' "$root/etc/$file" >"$folder/$file" || true
  chmod --reference="$root/etc/$file" "$folder/$file"
done
for user in alice:2001 bob:2002; do
  echo "${user%:*}:x:${user#*:}:${user#*:}::/home/${user%:*}:/bin/sh" >>"$folder/passwd"
  echo "${user%:*}:x:${user#*:}:" >>"$folder/group"
done
members=
for number in 1 2 3 4; do
  echo "nixbld$number:x:3000$number:30000::/var/empty:/usr/sbin/nologin" >>"$folder/passwd"
  members=$members${members:+,}nixbld$number
done
echo "nixbld:x:30000:$members" >>"$folder/group"
for file in passwd group shadow; do mount --bind "$folder/$file" "$at/etc/$file"; done

# Not chroot(2): in one of those the kernel refuses user namespaces, and with them Nix' sandbox.
cd "$at"
pivot_root . .
umount -l .
cd /
echo "$pid" >&3
exec 3>&-
# It ends when it is told to, and everything in the node with it; until then it collects orphans.
exec bash -c 'trap "exit 0" TERM; while :; do sleep 3600 & wait $!; done'
