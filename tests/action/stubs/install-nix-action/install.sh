#!/usr/bin/env bash
# Makes the Nix of one job below RUNNER_TEMP.
set -euo pipefail
! type -p nix || { echo "Nix is there already" >&2; exit 1; }

place=$RUNNER_TEMP/installed-nix
mkdir -p "$place/bin" "$place/etc"
# As the real one: flakes, the daemon's defaults, and what the workflow adds. No internet, no build users, one store a job.
cat >"$place/etc/nix.conf" <<CONFIG
experimental-features = nix-command flakes
max-jobs = 2
build-users-group =
substituters =
$EXTRA_NIX_CONFIG
CONFIG
if [ "${TEST_INSTALL:-}" = multi-user ]; then
  # Root's daemon runs already, and trusts this user: as the real one leaves GitHub's machines.
  ln -s /usr/bin/nix{,-build,-daemon,-store,-instantiate} "$place/bin/"
else
  for program in nix nix-build nix-daemon nix-store nix-instantiate; do
    printf '#!/bin/sh\nexport NIX_REMOTE=%q NIX_CONF_DIR=%q\nexec /usr/bin/%s "$@"\n' \
      "local?root=$place/store" "$place/etc" "$program" >"$place/bin/$program"
  done
  chmod 755 "$place"/bin/*
  # Where the job's folder is all that it may write, its store is there, too.
  echo "NIX_REMOTE=local?root=$place/store" >>"$GITHUB_ENV"
fi
echo "$place/bin" >>"$GITHUB_PATH"
# The original action's example builds what no step of it has checked out: so it lies there.
[ -z "${TEST_WORKSPACE:-}" ] || cp -r "$TEST_WORKSPACE/." "$GITHUB_WORKSPACE/"
echo "stub of install-nix-action: $(/usr/bin/nix --version) in $place"
