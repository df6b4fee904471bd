# On both: the one place that can be written, and a store there, in the same folder at both ends.
export HOME=/tmp NIX_STORE_DIR=/tmp/nix/store NIX_STATE_DIR=/tmp/nix/var/nix NIX_LOG_DIR=/tmp/nix/var/log/nix
# Where the user's number has no name, Nix asks for one here.
export USER=nix
export NIX_CONFIG='sandbox = false
build-users-group ='

# On the builder:
nixtail builder --auth-key file:builder.key --hostname builder-1 --socket "$PWD/builder.sock" --background

# On the coordinator:
nixtail coordinator --auth-key file:coordinator.key --hostname coordinator --builders builder-1 \
  -- nix-build hello.nix --max-jobs 0 --no-out-link
