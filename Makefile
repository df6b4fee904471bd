# What each needs and cannot find, scripts/needs installs or names in one line.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: demo test test-long bench counted fuzz sim mutants lint peers clean-cache

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

# What takes minutes: other versions of Nix (as root), whole machines against each other.
test-long:
	@environment=$$(scripts/needs test-long)
	eval "$$environment"
	scripts/peers >/dev/null
	scripts/nix-roots >/dev/null || echo "test-long: goes on without; what needs those versions of Nix is skipped" >&2
	scripts/test-long

# Twenty things that independent clients get wrong, put in one by one: the tests must see each. ONLY="3 17" takes those alone.
mutants:
	@environment=$$(scripts/needs test)
	eval "$$environment"
	scripts/peers >/dev/null
	scripts/mutants $(ONLY)

# Each stage of the hot path, the tunnel beside its peers, a node at rest, a start and first contacts beside tsnet, then Nix over nixtail
# beside sshd and tailscaled (as root; says what it leaves out). 50 minutes. target/bench has the second part's JSON and SVG. BENCH=compare is
# that alone, BENCH="contact 200" the first contacts; those fail where p99 is 1.5 s or any takes over 3 s.
bench:
	@environment=$$(scripts/needs bench)
	eval "$$environment"
	! command -v go >/dev/null || scripts/peers >/dev/null
	# Both packages both times: with other features, most of what they depend on would be built twice.
	$(if $(BENCH),,cargo bench --locked --package nixtail --package nixtail-bench --bench stages)
	cargo build --release --locked --package nixtail --package nixtail-bench
	"$${CARGO_TARGET_DIR:-target}/release/nixtail-bench" $(or $(BENCH),--folder "$${CARGO_TARGET_DIR:-target}/bench")

# What the hot path costs for each packet, counted by callgrind (part of `make test`). RECORD=1 takes what is counted as what is meant.
counted:
	@environment=$$(scripts/needs test)
	eval "$$environment"
	NIXTAIL_COUNTED=$(if $(RECORD),record) cargo test --workspace --locked --test counted -- --nocapture

# Coverage-guided fuzzing of all that reads bytes from control: `make fuzz T=300` takes five minutes, and says how many cases.
T ?= 60
fuzz:
	@environment=$$(scripts/needs fuzz)
	eval "$$environment"
	scripts/fuzz $(T)

# Histories of simulated networks against a reference model: `make sim N=20000`, or the same ones again with SEED=7.
N ?= 1000
sim:
	@environment=$$(scripts/needs sim)
	eval "$$environment"
	scripts/sim $(N) $(SEED)

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
	[ ! -w /var/cache/nixtail ] || rm -rf /var/cache/nixtail
