# Everything a newcomer needs: `make run` and `make test` work on a fresh machine.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: run test test-slow setup check bench chaos docs docs-serve reference

run: $(INSTALLED)  ## start the server on 127.0.0.1:8000 with the embedded model; options in ARGS="--port 8001"
	@exec $(BIN)/python run.py $(ARGS)

test: check  ## lint, types, and every test that needs no GPU, but for those of `make test-slow`; timed ones run alone
	$(BIN)/python -m pytest -m "not slow and not timed" -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m "not slow and timed"

test-slow: $(INSTALLED)  ## the tests that `make test` leaves out
	$(BIN)/python -m pytest -m slow $(ARGS)

chaos: $(INSTALLED)  ## kills, floods and full disks, all of them: about eleven minutes
	$(BIN)/python -m pytest tests/chaos $(ARGS)

setup: $(INSTALLED)  ## make .venv and install

check: $(INSTALLED)  ## lint and types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## the CPU benchmarks
	$(BIN)/python -m benchmarks.bench_responsiveness $(ARGS)

docs: $(INSTALLED)  ## the pages as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(INSTALLED)  ## the same on 127.0.0.1:8001, made again at each change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

reference: $(INSTALLED)  ## writes the settings into docs/configuration.md
	$(BIN)/python -m scripts.configuration_reference

$(INSTALLED): pyproject.toml constraints.txt scripts/setup
	PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX) scripts/setup
	@touch $@
