# On both:
export HTTPS_PROXY=http://proxy.example:3128 HTTP_PROXY=http://proxy.example:3128

# On the builder:
nixtail builder --auth-key file:builder.key --hostname builder-1 --socket "$PWD/builder.sock" --store ~/store --background

# On the coordinator:
nixtail coordinator --auth-key file:coordinator.key --hostname coordinator --builders builder-1 --store ~/store \
  -- nix-build hello.nix --max-jobs 0 --no-out-link --store ~/store
