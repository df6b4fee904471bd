# On the builder:
nixtail builder --auth-key file:builder.key --hostname builder-1 --socket "$PWD/builder.sock" --store ~/store --no-direct --background

# On the coordinator:
nixtail coordinator --auth-key file:coordinator.key --hostname coordinator --builders builder-1 --store ~/store --no-direct \
  -- nix-build hello.nix --max-jobs 0 --no-out-link --store ~/store
