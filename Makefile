# `make demo` and `make test` build .venv by themselves; they need python3 >= 3.11 with venv, git,
# make and a package index.
PYTHON ?= python3
# Processes that run the tests; a file's tests stay together, for they share what they set up.
WORKERS ?= 2
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.synced
PACKAGES := daam_diffusers hf_cudagraph_asr weaklabel
SOURCES  := $(PACKAGES:%=%/src)
MANIFESTS := pyproject.toml $(PACKAGES:%=%/pyproject.toml)
LOG    := docs/examples/households
LINTED := $(SOURCES) tests docs conftest.py

# The environment that make was called from must not leak into ours; CAPTION goes through it, so
# that the shell does not read what a caption says.
export CAPTION
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX

# uv is the one tool that the lock cannot bring.
define BOOTSTRAP
test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python3 >= 3.11 is needed: make PYTHON=...")'
test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
endef

.PHONY: demo test venv lint format bench bench-peers gpu docs lock tinyvoice tinyworld clean
.DEFAULT_GOAL := test

demo: $(STAMP)
	$(BIN)/python docs/examples/tinyworld/demo.py --out out/demo $(if $(CAPTION),--caption "$$CAPTION")
	$(BIN)/weaklabel apply $(LOG)/queries.parquet --out out/demo/votes.parquet --no-progress
	$(BIN)/weaklabel fit out/demo/votes.parquet --families auto --out out/demo/model.json
	$(BIN)/weaklabel label out/demo/votes.parquet --model out/demo/model.json --out out/demo/labels.parquet
	$(BIN)/weaklabel report out/demo/votes.parquet --model out/demo/model.json \
	  --gold $(LOG)/gold.parquet --queries $(LOG)/queries.parquet --html out/demo/weaklabel.html
	$(BIN)/python docs/examples/tinyvoice/transcribe.py

test: $(STAMP)
	$(BIN)/pytest -m "not gpu" -n $(WORKERS) --dist loadfile

venv: $(STAMP)

# A stamp instead of a check: a second run is one comparison of times. The environment is kept in
# step with the lock (`sync` removes what the lock does not name), hence --no-deps for our own.
$(STAMP): requirements.lock $(MANIFESTS)
	$(BOOTSTRAP)
	$(BIN)/uv pip sync --python $(BIN)/python --quiet --require-hashes requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation $(PACKAGES:%=--editable ./%)
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)
	$(BIN)/mypy --strict $(SOURCES)

format: $(STAMP)
	$(BIN)/ruff check --fix $(LINTED)
	$(BIN)/ruff format $(LINTED)

# The examples of the documents alone.
docs: $(STAMP)
	$(BIN)/pytest README.md CONTRIBUTING.md docs $(PACKAGES:%=%/README.md)

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_tracing.py
	$(BIN)/python tests/benchmarks/bench_weaklabel.py
	$(BIN)/python tests/benchmarks/bench_label_model.py
	$(BIN)/python tests/benchmarks/bench_plan.py
	$(BIN)/python tests/benchmarks/bench_padding.py
	$(BIN)/python tests/benchmarks/bench_dispatch.py
	$(BIN)/python tests/benchmarks/bench_graphs.py --queries 20 --graphs 2 --seconds 1 --repeats 1

# Beside other tools, each in an environment of its own that is made if it is missing.
bench-peers: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_peers.py
	$(BIN)/python tests/benchmarks/bench_weaklabel.py --peers
	$(BIN)/python tests/benchmarks/bench_label_model.py --peers
	$(BIN)/python tests/benchmarks/bench_transcripts.py

gpu: $(STAMP)
	$(BIN)/pytest -m gpu tests/gpu

# These train the demo's models anew; tinyvoice needs espeak-ng and flite.
tinyworld: $(STAMP)
	$(BIN)/python docs/examples/tinyworld/train.py

tinyvoice: $(STAMP)
	$(BIN)/python docs/examples/tinyvoice/train.py

# Universal, and without download addresses, so that the lock serves any platform and index.
lock:
	$(BOOTSTRAP)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --upgrade --group dev --all-extras \
	  $(PACKAGES:%=%/pyproject.toml) --output-file requirements.lock

clean:
	rm -rf $(VENV) out dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
