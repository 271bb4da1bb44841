# Everything a newcomer needs: `make run` and `make test` work on a fresh machine.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: run test setup check bench chaos

run: $(INSTALLED)  ## start the server on 127.0.0.1:8000 with the embedded model; options in ARGS="--port 8001"
	@exec $(BIN)/python run.py $(ARGS)

test: check  ## lint, types, and every test that needs no GPU, but for the long ones of `make chaos`
	$(BIN)/python -m pytest -m "not slow"

chaos: $(INSTALLED)  ## kills, floods and full disks, all of them: about eleven minutes
	$(BIN)/python -m pytest tests/chaos $(ARGS)

setup: $(INSTALLED)  ## make .venv and install

check: $(INSTALLED)  ## lint and types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## the CPU benchmarks
	$(BIN)/python -m benchmarks.bench_responsiveness $(ARGS)

$(INSTALLED): pyproject.toml constraints.txt scripts/setup
	PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX) scripts/setup
	@touch $@
