# Every target makes its own set-up: all that is needed is Python >= 3.11 and make.
PYTHON := .venv/bin/python
BIN := .venv/bin
ARGS ?=

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
SECRETS := $(CURDIR)/deploy/docker/.secrets

.PHONY: help run test check fmt proto lock bench chaos rolling soak simulate mutants images docker-secrets docker-check \
	clean local dev

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: local ## Start the whole stack, run the sample, serve. ARGS="--once", "--replicas executor=2,worker=2", "--help"
	@$(PYTHON) -m deploy.local $(ARGS)

test: dev ## Run the tests, with servers of their own. ARGS="tests/unit -k name"
	@$(PYTHON) -m pytest -n 2 --dist loadfile -q $(ARGS)

check: dev ## Lint, types, import rules, contracts, drift of generated files; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(PYTHON) -m tools.buf_breaking
	$(PYTHON) -m tools.proto --check
	$(PYTHON) -m tools.openapi --check
	$(PYTHON) -m tools.configuration --check
	$(PYTHON) -m tools.chart --check

fmt: dev ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format --quiet

proto: dev ## Generate gen/ from proto/
	$(PYTHON) -m tools.proto

lock: dev ## Take the newest versions that pyproject.toml allows into constraints.txt
	$(PYTHON) -m tools.lock

bench: dev ## Measure; figures depend on the machine. ARGS="--help"
	@$(PYTHON) -m tests.bench $(ARGS)

chaos: dev ## Kill, stop, wipe and cut whatever there is while runs flow, and check every promise. ARGS="--faults 300 --seed 7"
	@$(PYTHON) -m tests.chaos $(ARGS)

rolling: dev ## Restart every service in turn under a steady load: no request may fail. ARGS="--rate 50"
	@$(PYTHON) -m tests.chaos.rolling $(ARGS)

soak: dev ## A steady load for an hour: does memory grow, do runs slow down? ARGS="--minutes 480 --rate 50"
	@$(PYTHON) -m tests.bench.soak $(ARGS)

simulate: dev ## Simulate the execution code under faults drawn from seeds. ARGS="--seeds 20000 --first 0", "--seconds 60"
	@$(PYTHON) -m tests.simulation $(ARGS)

mutants: dev ## Break the execution code in one place at a time; the simulation must see each
	@$(PYTHON) -m tests.simulation.mutants

images: ## Build the images of all services. ARGS="executor"
	HEADRACE_VERSION=$(VERSION) HEADRACE_REVISION=$$(git rev-parse HEAD) \
		docker compose -f deploy/docker/compose.yaml build $(ARGS)

docker-secrets: ## Make the secret files that the stack in containers needs; after `make images`
	@mkdir -p -m 700 $(SECRETS)
	docker run --rm --network none --user $$(id -u):$$(id -g) --volume $(SECRETS):/secrets \
		--entrypoint python3 headrace-prepare:$(VERSION) -m deploy.docker.secrets /secrets

docker-check: dev ## Build the images without a registry, run the stack in containers, kill workers. ARGS="--help"
	@$(PYTHON) -m tests.containers $(ARGS)

clean: ## Remove what the targets made, but not the stack's data in .headrace
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find services deploy gen tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

local dev:
	@tools/bootstrap.sh $@
