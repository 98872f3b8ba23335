# On a machine with Python >= 3.11 and make: `make run` trains and scores a diffusion, `make test` runs the tests.
# Each target first creates .venv and installs what it needs, once: again only after pyproject.toml changed.

EXTRA ?=
ARGS ?=
JOBS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)

VENV := .venv
PY := $(VENV)/bin/python
comma := ,
extras = $(1)$(if $(EXTRA),$(comma)$(EXTRA))
stamp = $(VENV)/.installed-$(call extras,$(1))
run_ready := $(call stamp,experiments)
test_ready := $(call stamp,test)
test_all_ready := $(call stamp,test$(comma)docs)
docs_ready := $(call stamp,docs)

# A marker for the time of an installation: if it is still there, the last one was cut short, and .venv starts anew.
UNFINISHED := $(VENV)/.unfinished
again := $(if $(wildcard $(UNFINISHED)),FORCE,$(if $(wildcard $(PY)),,FORCE))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test test-all lint style docs docs-serve bench golden clean FORCE

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo "Variables: EXTRA=cuda|tpu (an accelerator's JAX), ARGS='--steps 100 …' (to the program), JOBS=2, PYTHON=python3.13"

run: $(run_ready) ## The main job: train on digits, sample, score; figures and metrics.json in runs/score_sde
	$(PY) -m experiments.score_sde $(ARGS)

# Most of the time of the tests is XLA's, compiling small programs: without its optimisations it takes half of it.
# `test-all` compiles as users do.
QUICK_XLA = $(shell $(PY) -m tests.quick)

# One process a core; on a GPU none may claim all of its memory.
test: $(test_ready) ## The tests, in parallel, without the long proofs
	XLA_FLAGS="$(XLA_FLAGS) $(QUICK_XLA)" XLA_PYTHON_CLIENT_PREALLOCATE=false $(PY) -m pytest -n $(JOBS) --dist loadfile -m "not slow" $(ARGS)

test-all: $(test_all_ready) ## The tests and the long proofs
	XLA_PYTHON_CLIENT_PREALLOCATE=false $(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: $(test_ready) ## Style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright --pythonpath $(PY)

style: $(test_ready) ## How the library reads, in numbers, and words that it must not contain
	$(PY) -m tests.style_report
	$(PY) -m tests.prose

# The notice is about a version of mkdocs that the site does not use.
MKDOCS = NO_MKDOCS_2_WARNING=1 XLA_PYTHON_CLIENT_PREALLOCATE=false $(PY) -m mkdocs

docs: $(docs_ready) ## Build the site in docs/site: runs every page, strict
	$(MKDOCS) build --config-file docs/mkdocs.yml $(ARGS)
	@echo "open docs/site/index.html"

docs-serve: $(docs_ready) ## Build the site and serve it at http://127.0.0.1:8000, again after each change
	$(MKDOCS) serve --config-file docs/mkdocs.yml $(ARGS)

bench: $(run_ready) ## Speed against hand-written loops, and solvers against exact solutions in short
	$(PY) -m experiments.bench_speed $(ARGS)
	$(PY) -m experiments.bench_solvers --quick

golden: $(call stamp,peers) ## Make the outputs of other libraries that tests compare with, again (GBs to install)
	$(PY) -m pip install --quiet --no-deps k-diffusion==0.1.1.post1 torchdiffeq torchsde trampoline
	$(PY) -m tests.golden.make $(ARGS)
	$(PY) -m tests.golden.make_flows
	$(PY) -m tests.golden.make_diffusers_networks
	$(PY) -m tests.golden.make_diffusers_schedulers

clean: ## Remove .venv and all caches (runs/ stays)
	rm -rf $(VENV) docs/site .xla_cache .pytest_cache .ruff_cache build dist
	find diffjax experiments tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# PYTHON, or the first on the path that is recent enough and can make environments.
$(VENV)/.installed-%: pyproject.toml $(again)
	@set -e; \
	if [ -e $(UNFINISHED) ] || ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	    if "$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then echo "no Python >= 3.11 with the venv module found; name one: make PYTHON=/path/to/python" >&2; exit 1; fi; \
	  echo "creating $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv --clear --without-pip $(VENV); \
	  touch $(UNFINISHED); \
	  $(PY) -m ensurepip >/dev/null; \
	fi; \
	touch $(UNFINISHED); \
	echo "installing diffjax[$*]"; \
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[$*]'; \
	rm -f $(UNFINISHED); \
	touch '$@'
