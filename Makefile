# make demo, make test and make check work on a fresh machine and may be repeated.

PYTHON ?= $(firstword $(foreach v,python3.13 python3.12 python3.11 python3,\
	$(shell $(v) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && command -v $(v))))
VENV ?= .venv
BIN = $(VENV)/bin
RUN ?= digits

.PHONY: demo clean-demo test test-all test-core verify faults gpu-bundle docs docs-check check help

# Four processes on two cores: tests that start Ray run in one, and mostly wait (tests/conftest.py).
PYTEST = $(BIN)/python -m pytest --numprocesses 4

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

test test-all: export DP_RAY_TEST_S3 ?= $(abspath $(VENV))/s3-server/bin/moto_server
test: $(VENV)/.installed-dev $(VENV)/s3-server/.installed  ## Run a test of every guarantee: nine minutes; ARGS="-k ledger" chooses
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-dev $(VENV)/s3-server/.installed  ## Run the slow tests, which make test leaves out: half an hour
	$(PYTEST) -m slow $(ARGS)

test-core: $(VENV)/.installed-dev  ## Run those of make test that need no Ray
	$(BIN)/python -m pytest tests --ignore tests/on_ray --ignore tests/faults/test_with_ray.py --numprocesses 2 -m "not slow" $(ARGS)

verify: $(VENV)/.installed-dev  ## Break each guarantee on purpose, and see its test fail: some minutes
	PYTHONPATH=tests $(BIN)/python -m mutations --jobs 2

faults: $(VENV)/.installed-dev  ## Kill processes at every point of a step and at random moments: an hour
	PYTHONPATH=tests $(BIN)/python -m faults.harness

gpu-bundle: $(VENV)/.installed-dev  ## Pack build/gpu for a machine with a GPU; DATA=cifar10_jpeg.tar.xz
	$(BIN)/python benchmarks/gpu/bundle.py --out build/gpu $(if $(DATA),--data $(DATA))

docs: $(VENV)/.installed-dev  ## Write docs/configuration.md and docs/architecture.svg from the code
	$(BIN)/python -m dp_ray.reporting.reference docs/configuration.md
	$(BIN)/python tests/helpers/import_graph.py --out docs/architecture.svg

docs-check: $(VENV)/.installed-dev  ## Run the commands of the documentation, follow its links
	$(BIN)/python -m pytest tests/repository/test_docs.py tests/on_ray/test_docs_on_ray.py

check: $(VENV)/.installed-dev  ## Lint, format and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd tests/repository && MYPYPATH=$(CURDIR) $(abspath $(BIN))/mypy --config-file= --strict \
		--follow-imports silent --cache-dir $(abspath .mypy_cache)/outside typed_use.py
	$(BIN)/mypy examples

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; set PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): about 7 GB, some minutes"
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[all]'
	@touch $@

# An S3 server for the tests: what it needs contradicts constraints.txt.
$(VENV)/s3-server/.installed: tests/helpers/s3_server.txt | $(VENV)/bin/python
	$(BIN)/python -m venv $(VENV)/s3-server
	$(VENV)/s3-server/bin/python -m pip install -qq --requirement tests/helpers/s3_server.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[all,dev]'
	@touch $@
