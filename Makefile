# What each needs and cannot find, scripts/needs installs or names in one line.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: demo test bench lint peers clean-cache

# A Nix build on two builders through our own tunnel, on this machine alone.
demo:
	@environment=$$(scripts/needs demo)
	eval "$$environment"
	cargo build --locked --package nixtail
	cargo run --quiet --locked --package nixtail -- demo

# Units, simulated network, and end to end with real peers.
test:
	@environment=$$(scripts/needs test)
	eval "$$environment"
	scripts/peers >/dev/null
	scripts/test

bench:
	@environment=$$(scripts/needs lint)
	eval "$$environment"
	cargo run --release --locked --package nixtail-bench

lint:
	@environment=$$(scripts/needs lint)
	eval "$$environment"
	scripts/lint

# The real peers that the tests talk to.
peers:
	@scripts/peers

# What this tree and scripts/needs keep outside of target.
clean-cache:
	rm -rf .cache "$${XDG_CACHE_HOME:-$$HOME/.cache}/nixtail/packages"
