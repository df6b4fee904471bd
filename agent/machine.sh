#!/usr/bin/env bash
# machine: which of action.yml's steps suit this machine. Reads ROLE, FREE_DISK_SPACE, INSTALL_NIX and CACHE, the inputs of those
# names, SOURCE_BINARY, and whether there is a key (HAS_KEY) or a workload identity (HAS_IDENTITY).
set -euo pipefail

say() { echo "nixtail: $*"; }
tell() { echo "$1=$2" >>"$GITHUB_OUTPUT"; }

# A builder that can't log in has nothing to do: what it needs is said by the next step, not after minutes of preparing.
is_in_vain() {
  [ "$ROLE" = builder ] && [ "$HAS_KEY" != true ] && { [ "$HAS_IDENTITY" != true ] || [ -z "${ACTIONS_ID_TOKEN_REQUEST_TOKEN:-}" ]; }
}

# Each prints why not, and nothing where all is well.
why_no_disk_space() {
  if [ "$FREE_DISK_SPACE" != true ]; then
    echo "it isn't wanted"
  elif [ "${RUNNER_OS:-}" != Linux ] || [ "${RUNNER_ENVIRONMENT:-}" != github-hosted ]; then
    echo "this is none of GitHub's Linux machines"
  elif [ ! -d /run/systemd/system ]; then
    echo "this is a container"
  elif [ -e /nix ]; then
    echo "/nix is there already"
  elif [ "$(lsb_release -is 2>/dev/null)" != Ubuntu ]; then
    echo "this isn't Ubuntu"
  elif ! sudo -n true 2>/dev/null; then
    echo "sudo asks for a password here"
  elif builds_nixtail; then
    echo "nixtail itself is built here, and the cleaner takes Rust away"
  fi
}

# Whether the launcher has no binary to take: the table of a tree that is no release is empty.
builds_nixtail() { [ -z "${SOURCE_BINARY:-}" ] && ! grep -q '"nixtail-' "${BASH_SOURCE[0]%/*}/checksums.json"; }

# The cache's daemon has ports of its own and changes the user's nix.conf: machines that live on, or run several jobs, don't want it.
why_no_cache() {
  if [ "$CACHE" != true ]; then
    echo "it isn't wanted"
  elif [ "${RUNNER_ENVIRONMENT:-}" != github-hosted ]; then
    echo "this is none of GitHub's machines"
  elif is_in_vain; then
    echo "this builder has nothing to log in with"
  fi
}

why_no_nix() {
  if type -p nix >/dev/null; then
    echo "$(type -p nix) is there already"
  elif [ "$INSTALL_NIX" != true ]; then
    echo "it isn't wanted"
  elif is_in_vain; then
    echo "this builder has nothing to log in with"
  fi
}

no_disk_space=$(why_no_disk_space)
no_nix=$(why_no_nix)
no_cache=$(why_no_cache)
# With an own Nix there is no room to make for one.
if [ -n "$no_nix" ] && [ -z "$no_disk_space" ]; then no_disk_space="Nix isn't installed here by this step"; fi

if [ -n "$no_disk_space" ]; then say "makes no room on the disk: $no_disk_space"; fi
if [ -n "$no_nix" ]; then say "installs no Nix: $no_nix"; fi
if [ -n "$no_cache" ]; then say "uses no cache of the workflow's: $no_cache"; fi
tell free-disk-space "$([ -z "$no_disk_space" ] && echo true || echo false)"
tell install-nix "$([ -z "$no_nix" ] && echo true || echo false)"
tell nix-was-there "$(type -p nix >/dev/null && echo true || echo false)"
tell cache "$([ -z "$no_cache" ] && echo true || echo false)"
