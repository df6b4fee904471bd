# Runs a script, with its arguments, in a side root of `scripts/nix-roots`, all of whose writable folders are new and in memory.
# Arguments: the root, an empty folder, the nixtail to test, the script. Run as root under `unshare -mpf`.
set -euo pipefail
root=$1 at=$2 nixtail=$3 script=$4
mount --make-rprivate /
mount --bind "$root" "$at"
mount -o remount,bind,ro "$at"
mount -t proc proc "$at/proc"
mount --rbind /dev "$at/dev"
mount --rbind /sys "$at/sys"
for own in nix etc/nix run tmp mnt; do mount -t tmpfs -o mode=755 tmpfs "$at/$own"; done
chmod 1777 "$at/tmp"
mkdir "$at/tmp/lab" "$at/mnt/old"
cp "$nixtail" "$at/mnt/nixtail"
cp "$script" "$at/mnt/script"
# Not chroot(2): in one of those the kernel refuses user namespaces.
cd "$at"
pivot_root . mnt/old
cd /
umount -l /mnt/old
exec bash /mnt/script /mnt/nixtail /tmp/lab
