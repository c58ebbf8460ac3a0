# Two commands do everything: `make run` and `make test`. Each sets up what it needs and says what is missing.
# PORT chooses the port of `make run`; ARGS is handed on to the program that a target starts; JOBS is how many tests run at
# the same time. The steps of the
# set-up are in .ci/setup; here is what depends on what, so that nothing is done twice.

.DEFAULT_GOAL := help
.PHONY: help run setup web browser servers services test lint bench lock sbom clean FORCE

PORT ?= 8000
ARGS ?=
JOBS ?= 2
PAGE := src/tapewatch/serve/ui/index.html
PAGE_SOURCES := $(shell find web -type f -not -path 'web/node_modules/*' 2>/dev/null)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	@echo "  PORT=8000 chooses the port of run; ARGS='...' goes to tapewatch, pytest or uv"

run: .venv/.installed ## start everything on synthetic trades and print the address of the page
	@if .ci/setup can-build-page; then $(MAKE) --no-print-directory web; fi
	@exec .venv/bin/tapewatch up --feed synthetic --port $(PORT) $(ARGS)

setup: .venv/.installed-dev ## make .venv with the package and the tools for tests and checks

web: $(PAGE) ## build the page into the package

test: .venv/.installed-dev web browser servers ## run every test: the page's own, then pytest
	@.ci/setup say "checking the page"; failed=0; \
	(cd web && npm --silent run check && npm --silent test) </dev/null || failed=1; \
	if [ $$failed = 1 ]; then .ci/setup say "the checks of the page FAILED; pytest runs all the same"; fi; \
	.venv/bin/python -m pytest -rsR -n $(JOBS) --dist loadfile $(ARGS) || failed=1; exit $$failed

lint: .venv/.installed-dev ## check style, format, types and import directions
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

services: .venv/.installed ## start Redis and TimescaleDB for development; .ci/services says how to go on
	@.ci/services up

bench: .venv/.installed ## measure the project's figures
	@.venv/bin/tapewatch bench $(ARGS)

lock: .venv/.installed-dev ## bring the lock files up to pyproject.toml; ARGS=--upgrade takes the newest versions
	@.ci/setup lock $(ARGS)

sbom: .venv/.installed-dev ## write dist/sbom.json: which packages run here, and which are in the page
	@.ci/setup sbom

clean: ## remove what the other targets made; data/ and .services/ stay
	rm -rf .venv dist/sbom.json web/node_modules src/tapewatch/serve/ui .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -type d -name __pycache__ -prune -exec rm -rf {} +

servers: .venv/.installed
	@.ci/setup servers

browser:
	@$(if $(findstring not browser,$(ARGS)),,.ci/setup browser)

.venv/.installed: pyproject.toml requirements.txt
	@.ci/setup package
	@touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.txt
	@.ci/setup dev
	@touch $@

web/node_modules/.installed: web/package-lock.json
	@.ci/setup page-libraries
	@touch $@

$(PAGE): web/node_modules/.installed $(PAGE_SOURCES)
	@.ci/setup page
	@touch $@

# A virtual environment works only in the folder that it was made in: in a copy of the tree it is made anew.
ifeq ($(shell grep -sF '$(CURDIR)/.venv' .venv/bin/pip),)
.venv/.installed: FORCE
endif
