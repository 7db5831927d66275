# Two commands do everything on a bare machine with Python >= 3.11: `make run` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests that start Ray run one after the other, and often wait for processes to start; all others take what is left.
QUICK := not gpu and not hours
BESIDE := .pytest_cache/beside.log
# The object store that tests run against (OpenStack Swift) has an environment of its own.
S3 := .venv-s3
export PATH := $(CURDIR)/$(BIN):$(PATH)
# The science runs on the cores it was given; libraries that spawn a thread per core on top only slow it down.
export OMP_NUM_THREADS ?= 2
ARGS ?=

.PHONY: help env run serve browser test test-gpu lint types bench bench-data submit clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(READY)  ## create .venv with the tested versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python >= 3.11 is needed, $$($(PYTHON) --version) was found"; echo "next: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipelines,sample,xlsx,onnx,dev]'
	@touch $(READY)

$(S3)/.ready: tests/servers/swift/requirements.txt
	test -x $(S3)/bin/python || $(PYTHON) -m venv $(S3)
	$(S3)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

run: $(READY)  ## the main job on the built-in sample; ARGS="data=csv data.root=..." for your own
	$(BIN)/python pipelines/full.py $(ARGS)

serve: $(READY)  ## the scoring service and its page on 127.0.0.1:8000; ARGS="serve.model=..."
	$(BIN)/python pipelines/serve.py $(ARGS)

# The report's page is looked at in a real browser. Where none can be installed, those tests skip and say so.
BROWSER := command -v chromium >/dev/null && command -v chromedriver >/dev/null
browser:
	@($(BROWSER)) || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  export DEBIAN_FRONTEND=noninteractive; \
	  { timeout 120 apt-get update -qq; timeout 300 apt-get install -y -qq --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1; true; fi
	@($(BROWSER)) || echo "chromium and chromedriver are not installed: no browser will look at the report"

# Two suites side by side have one core each; threads that wait for each other would take turns on it.
test: export OMP_NUM_THREADS := 1
# A test starts hundreds of processes; each would compile the project's modules again where nothing may be kept.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(READY) $(S3)/.ready browser  ## all tests that need neither an accelerator nor hours
	@mkdir -p $(dir $(BESIDE)); \
	nice -n 19 $(BIN)/python -m pytest -m "not ray and $(QUICK)" $(ARGS) > $(BESIDE) 2>&1 & beside=$$!; \
	$(BIN)/python -m pytest -m "ray and $(QUICK)" $(ARGS); first=$$?; \
	wait $$beside; second=$$?; cat $(BESIDE); \
	if [ $$first = 5 ] && [ $$second = 5 ]; then exit 5; fi; \
	for status in $$first $$second; do [ $$status = 0 ] || [ $$status = 5 ] || exit $$status; done

test-gpu: $(READY)  ## the tests that need an accelerator
	$(BIN)/python -m pytest -m gpu $(ARGS)

lint: $(READY)  ## ruff: style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## pyright on the package and the pipelines
	$(BIN)/pyright

bench: $(READY)  ## what the numbers in docs/ come from
	$(BIN)/python benchmarks/degradations.py $(ARGS)

bench-data: $(READY)  ## Ray Data against a DataLoader, memory, ingest; one JSON object
	$(BIN)/python benchmarks/data.py $(ARGS)

submit: $(READY)  ## submit the main job to the running cluster that RAY_ADDRESS names
	$(BIN)/python -m pipelines.runtime.package
	$(BIN)/ray job submit --working-dir . --runtime-env-json '{"env_vars": {"DRI_IQA_COMMIT": "$(COMMIT)"}}' -- python pipelines/full.py $(ARGS)

clean:  ## remove the environment and caches; runs/ (data, models, registry) is kept
	rm -rf $(VENV) $(S3) $(AUDIT) build dist *.egg-info .pytest_cache .ruff_cache

include infra/infra.mk
