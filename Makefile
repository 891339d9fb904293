# A fresh machine needs Python 3.11+, make and git; everything else is set up here, in .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PROTOC := $(BIN)/python -m grpc_tools.protoc -Iprotos --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc
DATA_DIR ?= data
# Processes that share the tests, file by file; each has a PostgreSQL of its own.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install run test chaos bench lint generate check-generated freeze-api clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.venv/runtime: pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "Making .venv with $(PYTHON)"; $(PYTHON) -m venv .venv; }
	@echo "Installing what the service needs (the first time takes a minute or two)"
	$(PIP) install -c constraints.txt -e .
	@touch $@

.venv/development: .venv/runtime
	@echo "Installing what the tests and checks need"
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

install: .venv/runtime ## Set up .venv with what the service needs

run: .venv/runtime ## Start the service on an embedded database, ready to try
	@TRUNKLINE_DATA_DIR=$(DATA_DIR) exec $(BIN)/trunkline serve --try

test: .venv/development ## Run every test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

chaos: .venv/development ## Run every fault at full length (the tests run a short form)
	TRUNKLINE_TEST_SIZE=full $(BIN)/python -m pytest tests/chaos tests/model

bench: .venv/development ## Measure against the floors, in one run; BENCH=--quick for a first look
	$(BIN)/python -m tests.bench $(BENCH)

lint: .venv/development ## Check style, types, import direction and protos
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against tests/contract/released_api.binpb

generate: .venv/development ## Rewrite generated/ from protos/
	rm -rf generated && mkdir -p generated/siptrunk && touch generated/siptrunk/py.typed
	$(PROTOC) --python_out=generated --mypy_out=quiet:generated protos/siptrunk/v1/*.proto
	$(PROTOC) --include_source_info --descriptor_set_out=generated/siptrunk/comments.binpb protos/siptrunk/v1/*.proto
	$(PROTOC) --grpc_python_out=generated --mypy_grpc_out=quiet:generated protos/siptrunk/v1/*_service.proto

check-generated: generate ## Fail where generated/ is not what protos/ say
	@git status --porcelain generated | tee /dev/stderr | (! grep -q .)

freeze-api: .venv/development ## At a release: keep the API that later ones must not break
	$(BIN)/buf build --exclude-source-info -o tests/contract/released_api.binpb

clean: ## Remove .venv and the data of `make run`
	rm -rf .venv $(DATA_DIR)
