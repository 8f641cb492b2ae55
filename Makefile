# `make demo` and `make test` build .venv themselves; they need python3 >= 3.11 with venv, git, make
# and a package index.
PYTHON ?= python3
# Processes that run the tests; the tests of one file stay together, because they share what they
# set up, and files are begun in the order of conftest.py.
WORKERS ?= 2
# `make test PACKAGE=weaklabel` tests one package in a smaller environment of its own; with LOWEST=1
# in the lowest versions that its manifest allows, instead of those of the lock.
PACKAGE :=
LOWEST  :=
PACKAGES := daam_diffusers hf_cudagraph_asr weaklabel
SOURCES  := $(PACKAGES:%=%/src)
LOG    := docs/examples/households
LINTED := $(SOURCES) tests docs conftest.py

# What belongs to a package, besides its own folder and tests/<package>.
WITH_daam_diffusers := tests/tinyworld docs/families.md docs/study.md docs/examples/tinyworld
WITH_hf_cudagraph_asr := tests/tinyvoice docs/observing.md docs/serving.md docs/examples/tinyvoice
WITH_weaklabel := tests/households docs/weaklabel-plugins.md docs/examples/households \
  docs/examples/weaklabel-plugin
# What joins the packages: tested without PACKAGE only.
WITH_all := tests/faults tests/speechnet docs/speechnet.md docs/examples/speechnet \
  docs/index.md docs/which-tool.md docs/measured.md docs/benchmarks.md docs/limits.md \
  docs/reliability.md

ifeq ($(PACKAGE),)
VENV      := .venv
MANIFESTS := pyproject.toml $(PACKAGES:%=%/pyproject.toml)
TESTED    :=
else ifneq ($(words $(PACKAGE)) $(filter $(PACKAGE),$(PACKAGES)),1 $(PACKAGE))
$(error PACKAGE=$(PACKAGE) is not a package of this repository; give one of: $(PACKAGES))
else ifneq ($(filter-out test venv clean,$(MAKECMDGOALS)),)
$(error PACKAGE=$(PACKAGE) works with `make test` and `make venv` only; \
  run `make $(MAKECMDGOALS)` without it)
else
VENV      := .venv-$(if $(LOWEST),lowest-)$(PACKAGE)
MANIFESTS := pyproject.toml $(PACKAGE)/pyproject.toml
TESTED    := $(PACKAGE) tests/$(PACKAGE) docs/$(PACKAGE) $(WITH_$(PACKAGE))
endif
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.synced

# The caller's environment must not leak into ours. CAPTION goes through it, so that the shell does
# not interpret a caption.
export CAPTION
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE VIRTUAL_ENV CONDA_PREFIX

# The lock cannot install uv, the tool that reads it.
define BOOTSTRAP
test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python3 >= 3.11 is needed: make PYTHON=...")'
test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
endef

.PHONY: demo test venv lint format api bench bench-peers faults figures gpu docs lock release-check speechnet study tinyvoice tinyworld clean
.DEFAULT_GOAL := test

demo: $(STAMP)
	$(BIN)/python docs/examples/tinyworld/demo.py --out out/demo $(if $(CAPTION),--caption "$$CAPTION")
	$(BIN)/weaklabel apply $(LOG)/queries.parquet --out out/demo/votes.parquet --no-progress
	$(BIN)/weaklabel fit out/demo/votes.parquet --out out/demo/model.json
	$(BIN)/weaklabel label out/demo/votes.parquet --model out/demo/model.json --out out/demo/labels.parquet
	$(BIN)/weaklabel report out/demo/votes.parquet --model out/demo/model.json \
	  --gold $(LOG)/gold.parquet --queries $(LOG)/queries.parquet --html out/demo/weaklabel.html
	$(BIN)/python docs/examples/tinyvoice/transcribe.py

test: $(STAMP)
	$(BIN)/pytest -m "not gpu" -n $(WORKERS) --no-loadscope-reorder --dist loadfile $(TESTED)

venv: $(STAMP)

# All three packages: exactly what the lock names, hence --no-deps for our own.
define INSTALL_ALL
$(BIN)/uv pip sync --python $(BIN)/python --quiet --require-hashes requirements.lock
$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation $(PACKAGES:%=--editable ./%)
endef

# One package: what its extra `test` asks for and nothing else, in the versions and with the hashes
# of the lock.
define INSTALL_ONE
$(BIN)/uv pip install --python $(BIN)/python --quiet --exact --editable './$(PACKAGE)[test]' \
  $(if $(LOWEST),--resolution lowest-direct,--constraint requirements.lock) \
  --build-constraint requirements.lock
endef

# A stamp instead of a check: a second run only compares times.
$(STAMP): requirements.lock $(MANIFESTS)
	$(BOOTSTRAP)
	$(if $(PACKAGE),$(INSTALL_ONE),$(INSTALL_ALL))
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)
	$(BIN)/mypy --strict $(SOURCES)

format: $(STAMP)
	$(BIN)/ruff check --fix $(LINTED)
	$(BIN)/ruff format $(LINTED)

# The public names and signatures, which a test compares with the code.
api: $(STAMP)
	$(BIN)/python tests/repository/api.py $(PACKAGES)

# The site, out/docs/index.html, and the examples of the documents alone.
docs: $(STAMP)
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -c docs -d out/doctrees . out/docs
	$(BIN)/pytest README.md CONTRIBUTING.md docs $(PACKAGES:%=%/README.md)

# All that a machine without a GPU measures in a quarter of an hour: docs/benchmarks.md. The last
# three end with 1 where a bar of theirs is missed.
KEEP := --save docs/benchmarks
bench: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_tracing.py --pairs 2 --no-memory $(KEEP)
	$(BIN)/python tests/benchmarks/bench_scores.py --layers "sd15 64²" pixart wan joint --repeats 3 $(KEEP)
	$(BIN)/python tests/benchmarks/bench_growth.py maps --repeats 2 $(KEEP)
	$(BIN)/python tests/benchmarks/bench_padding.py --pairs 7 $(KEEP)
	$(BIN)/python tests/benchmarks/bench_dispatch.py
	$(BIN)/python tests/benchmarks/bench_growth.py dispatch $(KEEP)
	$(BIN)/python tests/benchmarks/bench_batching.py --dtypes float32 --orders 1 --batch-sizes 4 $(KEEP)
	$(BIN)/python tests/benchmarks/bench_arrivals.py $(KEEP)
	$(BIN)/python tests/benchmarks/bench_offline.py --minutes 2 --repeats 3 $(KEEP)
	$(BIN)/python tests/benchmarks/bench_weaklabel.py --rows 3000000 --repeats 3 $(KEEP)
	$(BIN)/python tests/benchmarks/bench_label_model.py --rows 3000000 $(KEEP)
	$(BIN)/python tests/benchmarks/bench_growth.py labels $(KEEP)
	$(BIN)/python tests/benchmarks/bench_plan.py $(KEEP)
	$(BIN)/python tests/benchmarks/bench_graphs.py --queries 15 --graphs 2 --seconds 1 --repeats 1 $(KEEP)
	$(BIN)/python tests/benchmarks/bench_modules.py

# The quick ones again, against the committed figures; NAMES="plan padding" for some of them.
.PHONY: bench-check
bench-check: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_check.py $(NAMES)

# Other tools beside ours, each in an environment of its own, built if it is missing. Those that
# cannot be installed or run are named on the page, and the others run all the same.
bench-peers: $(STAMP)
	-$(BIN)/python tests/benchmarks/bench_peers.py --steps 1 --pairs 2 $(KEEP)
	-$(BIN)/python tests/benchmarks/bench_weaklabel.py --rows 1000000 --engines polars --peers $(KEEP)
	-$(BIN)/python tests/benchmarks/bench_label_model.py --seeds 1 --rows 1000000 --peers $(KEEP)
	-$(BIN)/python tests/benchmarks/bench_transcripts.py $(KEEP)
	-$(BIN)/python tests/benchmarks/bench_graphs.py --reduce-overhead --backends eager export \
	  --queries 5 --graphs 2 --seconds 1 2 $(KEEP)

# Kills, full disks, interrupts and damaged files for as long as it takes: docs/reliability.md.
faults: $(STAMP)
	$(BIN)/python tests/faults/killed_runs.py
	$(BIN)/python tests/faults/stopped_generations.py
	$(BIN)/python tests/faults/stopped_calls.py
	$(BIN)/python tests/faults/soak_server.py
	$(BIN)/python tests/faults/server_memory.py
	$(BIN)/python tests/faults/fuzz.py --minutes 10
	$(BIN)/python tests/faults/atheris_targets.py --minutes 10

gpu: $(STAMP)
	$(BIN)/pytest -m gpu tests/gpu

# Train the demo's models again; tinyvoice needs espeak-ng and flite.
tinyworld: $(STAMP)
	$(BIN)/python docs/examples/tinyworld/train.py

# Parts of speech and syntax on tinyworld: docs/study.md. Images that runs/study has are kept.
study: $(STAMP)
	$(BIN)/python docs/examples/tinyworld/study.py --figure docs/figures/study.png

# The documentation's pictures but those of `study` and `speechnet`; needs Chromium.
figures: $(STAMP)
	$(BIN)/python docs/examples/pictures.py

tinyvoice: $(STAMP)
	$(BIN)/python docs/examples/tinyvoice/train.py

# Needs espeak-ng, flite and festival; what is there already is not made again. piper is a tool under
# the GPL, so it gets an environment of its own.
SIZE  ?= smoke
PIPER := runs/speechnet/piper
speechnet: $(STAMP) $(PIPER)/.synced
	SPEECHNET_PIPER=$(PIPER) $(BIN)/python docs/examples/speechnet all --size $(SIZE)

$(PIPER)/.synced: docs/examples/speechnet/piper.txt $(STAMP)
	test -x $(PIPER)/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python $(PIPER)
	$(BIN)/uv pip sync --python $(PIPER)/bin/python --quiet --require-hashes $<
	touch $@

# What a release must pass, on the last commit: see CONTRIBUTING.md. With LOWEST=1 also each
# package's tests in the lowest versions that its manifest allows.
RELEASE := build/release
PYTHONS ?= $(shell for minor in 12 13 14; do \
  python3.$$minor -c '' >/dev/null 2>&1 && echo python3.$$minor; done)
release-check: $(STAMP)
	git diff --quiet HEAD || { echo "commit first: a release is made from a commit" >&2; exit 1; }
	rm -rf $(RELEASE)
	mkdir -p $(RELEASE)/tree
	git archive HEAD $(PACKAGES) | tar -x -C $(RELEASE)/tree
	for package in $(PACKAGES); do \
	  $(BIN)/python -m build --no-isolation --outdir $(RELEASE)/dist $(RELEASE)/tree/$$package || exit; done
	$(BIN)/uv tool run --quiet --from twine==7.0.0 twine check --strict $(RELEASE)/dist/*
	for wheel in $(RELEASE)/dist/*.whl; do $(BIN)/python -m zipfile --list $$wheel; done
	@echo "Pythons besides that of .venv: $(or $(PYTHONS),none: name them as PYTHONS=...)"
	DIST=$(CURDIR)/$(RELEASE)/dist PYTHONS="$(PYTHONS)" \
	  $(BIN)/pytest -o timeout=1800 tests/repository
	$(BIN)/python tests/repository/advisories.py
	$(if $(LOWEST),for package in $(PACKAGES); do $(MAKE) test PACKAGE=$$package || exit; done)

# Universal and without download addresses, so that the lock works on any platform and index.
lock:
	$(BOOTSTRAP)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --upgrade --group dev --group docs --group speechnet --all-extras \
	  $(PACKAGES:%=%/pyproject.toml) --output-file requirements.lock

clean:
	rm -rf .venv $(PACKAGES:%=.venv-%) $(PACKAGES:%=.venv-lowest-%) out dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
