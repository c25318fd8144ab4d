# Tenure's front door. `make demo` and `make test` set everything up by themselves; nothing outside this folder is
# touched. PYTHON names the interpreter that the private virtual environment is made from (3.11 or newer).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/uv
UV_PIN := uv==0.13.9
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast fuzzy sim mutants lint verify fix lock bench-raft \
	bench-raft-sizes bench-raft-voters bench-raft-idle bench-raft-long bench-failover bench-failover-steady bench-check clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(VENV)/.installed $(VENV)/.binding ## the virtual environment, the compiled binding and the three packages

demo: setup ## an embedded PostgreSQL, three payment nodes, a stream of payments (ARGS="--fault kill --every 8")
	@$(BIN)/tenure demo $(ARGS)

test: setup ## all tests, those with several real processes included
	@$(BIN)/pytest $(ARGS)

test-fast: setup ## the tests that start no cluster of processes
	@$(BIN)/pytest -m "not processes" $(ARGS)

SEEDS ?= 20
fuzzy: setup ## the fuzzy scenarios of the Raft node against real processes, many seeds (SEEDS=20)
	@FUZZY_SEEDS=$(SEEDS) $(BIN)/pytest tests/processes/test_raft_fuzzy.py $(ARGS)

SECONDS ?= 600
sim: setup ## the simulator: SEED=7 replays one with its trace, SEEDS=1000 or FIRST-LAST runs many (SECONDS=600 of each)
	@$(BIN)/python -m tenure.testing.simulation $(if $(SEED),--seed $(SEED),--seeds $(if $(filter command line,$(origin SEEDS)),$(SEEDS),100)) \
		--seconds $(SECONDS) $(ARGS)

NAMES ?=
mutants: setup ## every named fault, switched on by itself, and what catches it (NAMES="no_wait_out", SEEDS=200)
	@PYTHONPATH=tests $(BIN)/python -m mutants $(if $(filter command line,$(origin SEEDS)),--seeds $(SEEDS)) $(ARGS) $(NAMES)

lint: setup ## format, lint and types of Python and Rust; writes nothing
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/basedpyright
	@cd raft && cargo fmt --check && cargo clippy --all-targets --locked -- -D warnings && cargo test --locked --quiet

verify: lint ## format, lint, types and all tests; writes nothing
	@$(MAKE) --no-print-directory test

fix: setup ## format and mend what can be mended by itself
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@cd raft && cargo fmt

lock: $(VENV)/.uv ## compile requirements/dev.in to the hashed lock
	@cd requirements && ../$(UV) pip compile --universal --generate-hashes --no-emit-index-url --no-header \
		--python-version 3.11 dev.in -o dev.lock --quiet

bench-raft: setup ## our Raft node beside its peers, ten minutes (QUICK=1: under one; ARGS="--help")
	@$(BIN)/python -m bench.raft.run $(ARGS)

bench-raft-sizes: setup ## the same for payloads of 256 B to 1 MiB (QUICK=1: under a minute)
	@$(BIN)/python -m bench.raft.series sizes $(ARGS)

bench-raft-voters: setup ## the same for 3, 5 and 7 voters (QUICK=1: under a minute)
	@$(BIN)/python -m bench.raft.series voters $(ARGS)

bench-raft-idle: setup ## what a cluster costs that does nothing (QUICK=1: under a minute)
	@$(BIN)/python -m bench.raft.series idle $(ARGS)

bench-raft-long: setup ## our Raft node over the life of a log (ENTRIES=10000000; QUICK=1: under a minute)
	@$(BIN)/python -m bench.raft.long $(if $(ENTRIES),--entries $(ENTRIES)) $(ARGS)

bench-failover: setup ## how long nobody leads after a death, a pause, a cut, beside the peers (QUICK=1: under a minute)
	@$(BIN)/python -m bench.failover.run $(ARGS)

bench-failover-steady: setup ## ten minutes of full load for each setting: no leadership ends by itself (QUICK=1)
	@$(BIN)/python -m bench.failover.steady $(ARGS)

bench-check: setup ## what leadership.check() costs, which stands before every write
	@$(BIN)/python -m bench.check

clean: ## remove the virtual environment and everything that was built
	@rm -rf $(VENV) raft/target dist raft/python/tenure_raft/*.so bench/raft/.build bench/raft/.venv

# Named before anything is downloaded, and again when the binding is built.
define need_toolchain
@command -v cargo >/dev/null || { echo "make: no Rust toolchain (cargo) found; the Raft binding is compiled from source. Install Rust 1.83 or newer: https://rustup.rs, or Debian: apt-get install cargo (check that it is 1.83+)"; exit 1; }
@command -v cc >/dev/null || { echo "make: no C compiler (cc) found; linking the Raft binding needs one. Debian: apt-get install gcc libc6-dev"; exit 1; }
endef

$(VENV)/.uv:
	$(need_toolchain)
	@test -n "$(PYTHON)" || { echo "make: no python3 found. Install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) does not run, or is older than Python 3.11. Name another one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: $(PYTHON) cannot make a virtual environment. Debian: apt-get install python3-venv"; exit 1; }
	@echo "setup: installing $(UV_PIN)"
	@$(BIN)/pip install --quiet --disable-pip-version-check $(UV_PIN)
	@touch $@

$(VENV)/.synced: $(VENV)/.uv requirements/dev.lock
	@echo "setup: installing the locked Python packages"
	@$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.lock
	@rm -f $(VENV)/.installed $(VENV)/.binding
	@touch $@

$(VENV)/.installed: $(VENV)/.synced pyproject.toml payments/pyproject.toml
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e . -e payments
	@touch $@

# The extension does not rebuild by itself: this rule does it when the Rust sources change.
$(VENV)/.binding: $(VENV)/.synced raft/Cargo.toml raft/Cargo.lock raft/pyproject.toml $(wildcard raft/src/*.rs) $(wildcard raft/python/tenure_raft/*.py*)
	$(need_toolchain)
	@echo "setup: building the Raft binding (about a minute the first time)"
	@rm -rf raft/target/wheels
	@cd raft && ../$(BIN)/maturin build --quiet --release --locked --interpreter ../$(BIN)/python --out target/wheels
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --reinstall raft/target/wheels/*.whl
	@touch $@
