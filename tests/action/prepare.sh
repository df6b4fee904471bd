#!/usr/bin/env bash
# prepare HOME TREE ACT: makes the home of a machine that runs jobs: the programs that jobs find, the action, its stubs, and a
# repository to build.
set -euo pipefail
home=$1 tree=$2 act=$3

# All that this machine has, but Nix: that is for the installer to bring.
mkdir -p "$home/bin"
ln -s /usr/bin/* /usr/sbin/ip "$home/bin/" 2>/dev/null || true
rm -f "$home"/bin/nix{,-*} "$home"/bin/{sudo,lsb_release,node}
cp "$act" "$home/bin/act"
ln -s "$(readlink -f "$(type -p node)")" "$home/bin/node"
# As on GitHub's machines, as far as anything asks: nobody is root here, and nothing can become it.
printf '#!/bin/sh\n[ "$*" = "-n true" ]\n' >"$home/bin/sudo"
printf '#!/bin/sh\necho Ubuntu\n' >"$home/bin/lsb_release"
chmod 755 "$home"/bin/{sudo,lsb_release}

# The action as a workflow gets it, but for what act doesn't know: `$/`, this repository at this commit.
mkdir "$home/action"
cp -r "$tree/action.yml" "$tree/agent" "$home/action/"
sed -i 's|uses: \$/agent|uses: nixtail/nixtail/agent@0000000000000000000000000000000000000000|' "$home/action/action.yml"
grep -q 'uses: nixtail/nixtail/agent@' "$home/action/action.yml"
# There is no release to download here.
sed -i '/^  source-binary:/,/default:/s|default: .*|default: /run/bin/nixtail|' "$home"/action/{,agent/}action.yml
cp -r "$tree/tests/action/stubs" "$home/stubs"

mkdir -p "$home/repository/.github" "$home/.config/act" "$home/report"
touch "$home/.config/act/actrc"
cp -r "$tree/tests/action/repository/." "$home/repository/"
mkdir "$home/repository/tools"
cp "$(type -p busybox)" "$home/repository/tools/busybox"
echo "$home $$ $RANDOM" >"$home/repository/tools/salt"
cp -r "$tree/tests/action/workflows" "$home/repository/.github/workflows"
cp "$tree"/docs/workflows/*.yml "$home/repository/.github/workflows/" 2>/dev/null || true
git -C "$home/repository" init -q
git -C "$home/repository" add .
git -C "$home/repository" -c user.name=test -c user.email=test@invalid commit -qm test
