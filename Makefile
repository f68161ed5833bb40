# make demo, make test and make check work on a fresh machine and may be repeated.

PYTHON ?= $(firstword $(foreach v,python3.13 python3.12 python3.11 python3,\
	$(shell $(v) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && command -v $(v))))
VENV ?= .venv
BIN = $(VENV)/bin
RUN ?= digits

.PHONY: demo clean-demo test test-core verify faults check help

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.installed  ## Train configs/digits.yaml with 2 workers and say where the results are
	@if grep -qs '"finished"' runs/$(RUN)/result.json; then \
		echo "runs/$(RUN) is there already (make clean-demo removes it):"; \
		$(BIN)/dp-ray evaluate runs/$(RUN); \
	elif [ -e runs/$(RUN) ]; then \
		$(BIN)/dp-ray train configs/digits.yaml --name $(RUN) --resume; \
	else \
		$(BIN)/dp-ray train configs/digits.yaml --name $(RUN); \
	fi
	@echo "results       runs/$(RUN)/release may be published, runs/$(RUN)/private must not be"

clean-demo:  ## Remove the demo's run
	rm -rf runs/$(RUN)

test: $(VENV)/.installed-dev  ## Run the whole test suite
	$(BIN)/python -m pytest tests/core --numprocesses 2
	$(BIN)/python -m pytest tests/ray tests/faults

test-core: $(VENV)/.installed-dev  ## Run the tests that need no Ray
	$(BIN)/python -m pytest tests/core --numprocesses 2

verify: $(VENV)/.installed-dev  ## Break each guarantee on purpose, and see its test fail: some minutes
	PYTHONPATH=tests $(BIN)/python -m mutations --jobs 2

faults: $(VENV)/.installed-dev  ## Kill processes at every point of a step and at random moments: an hour
	PYTHONPATH=tests $(BIN)/python -m faults.harness

check: $(VENV)/.installed-dev  ## Lint, format and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; set PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): about 6 GB, some minutes"
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@
