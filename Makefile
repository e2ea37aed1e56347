# Set-up and checks: `make lab` to work, `make test` to check, `make demo` for an example without a browser.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export VENV ?= .venv
BIN := $(VENV)/bin
SPHINX := --fail-on-warning --keep-going --nitpicky --quiet

UV ?= uv

.PHONY: help lab test test-lowest test-newest audit lint demo docs docs-check lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

lab:  ## create the environment, install, open JupyterLab on the first notebook
	@tools/setup.sh run
	@echo "Opening JupyterLab; stop it with Ctrl-C."
	@$(BIN)/qptlab lab || { echo "qptlab: JupyterLab did not start or failed; its messages above name the reason." >&2; exit 1; }

test:  ## create the environment, install everything that the tests need, run them all
	@tools/setup.sh test
	@tools/chromium.sh
	@$(MAKE) --no-print-directory lint
	@echo "Running the tests."
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder || { echo "qptlab: tests failed; the summary is above." >&2; exit 1; }

# Environment, Python and resolution of the versions.
define fast_tests
@echo "Installing into $(1)."
@$(UV) venv --quiet --clear --python $(2) $(1)
@$(UV) pip install --quiet --python $(1)/bin/python --resolution $(3) -e ".[test]"
@echo "Running the fast tests."
@$(1)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not browser" tests qptlab
endef

test-lowest:  ## fast tests with the lowest versions that pyproject.toml allows, on Python 3.11 (needs uv)
	$(call fast_tests,.venv-lowest,3.11,lowest-direct)

test-newest:  ## fast tests with the newest versions, on Python 3.12 (needs uv)
	$(call fast_tests,.venv-newest,3.12,highest)

audit:  ## known weaknesses of the locked versions, by pip-audit, and the licences of what is installed (needs uv)
	@tools/setup.sh run
	@$(BIN)/python tools/licences.py
	@$(UV) tool run pip-audit --strict --progress-spinner off --no-deps --disable-pip -r constraints.txt

lint:  ## check style, types, the order of imports, and that notebooks hold no outputs
	@tools/setup.sh test
	@echo "Checking style, types, imports and notebooks."
	@failed=; \
	  $(BIN)/ruff check . || failed="$$failed ruff"; \
	  $(BIN)/pyright --pythonpath $(BIN)/python || failed="$$failed pyright"; \
	  $(BIN)/lint-imports || failed="$$failed lint-imports"; \
	  find notebooks -name '*.ipynb' -not -path '*/.*' -print0 2>/dev/null \
	    | xargs -0 -r $(BIN)/nbstripout --verify --keep-id || failed="$$failed nbstripout"; \
	  if [ -n "$$failed" ]; then echo "qptlab: these checks failed:$$failed; fix what they list above." >&2; exit 1; fi

demo:  ## train water for a minute without a browser, print the table of errors
	@tools/setup.sh run
	@set -e; out=runs/demo-$$(date +%Y%m%d-%H%M%S); mkdir -p runs; \
	  echo "Training a network on water, PBE/STO-3G, for a minute; the run folder is $$out."; \
	  $(BIN)/qptlab train water --xc pbe --basis sto-3g --minutes 1 --sampler md --seed 0 --out $$out; \
	  echo "Drawing geometries from an independent trajectory at 500 K, and comparing with PySCF."; \
	  $(BIN)/qptlab sample water --n 32 --seed 1 --out $$out/other-trajectory.xyz; \
	  $(BIN)/qptlab evaluate $$out --geometries $$out/other-trajectory.xyz

docs:  ## build the documentation site, docs/_build/html; the notebooks that have changed are executed
	@tools/setup.sh test
	@echo "Building the site. Notebooks that have changed are executed; all of them take some 20 minutes."
	@rm -rf docs/_build/html  # without pages that no longer exist
	@$(BIN)/python -m sphinx -b html -D nb_execution_mode=cache $(SPHINX) docs docs/_build/html
	@$(BIN)/python docs/check.py docs/_build/html
	@echo "The site begins at docs/_build/html/index.html."

docs-check:  ## build the site without executing notebooks; warnings and broken links are errors
	@tools/setup.sh test
	@echo "Building the site without outputs of notebooks, and checking its links."
	@rm -rf docs/_build/check
	@$(BIN)/python -m sphinx -b html $(SPHINX) docs docs/_build/check
	@$(BIN)/python docs/check.py docs/_build/check

lock:  ## write constraints.txt anew (needs uv)
	uv pip compile --universal --python-version 3.11 --extra dev --no-header --no-annotate \
	  --no-emit-index-url --quiet --upgrade pyproject.toml -o constraints.txt

clean:  ## remove the environment and caches; runs are kept
	@if [ -e $(VENV) ] && [ ! -f $(VENV)/pyvenv.cfg ]; then \
	  echo "qptlab: $(VENV) is not an environment and is not removed; name one: VENV=.venv make clean." >&2; exit 1; fi
	@echo "Removing $(VENV), caches and build outputs."
	@rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache .hypothesis artifacts build dist docs/_build docs/.jupyter_cache
	@find qptlab tests tools -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
