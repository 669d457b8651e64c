# Two environments: .venv holds the gateway, this library and the test tools; .venv-lab holds JupyterLab, papermill and what
# runs kernels on this machine. They cannot be one (see requirements/). Nothing is installed again unless its list changed.

PYTHON ?= $(shell for python in python3.11 python3.10 python3 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 12))' 2>/dev/null && echo $$python && break; done)
PYTHON310 ?= python3.10
PYTHON311 ?= python3.11
GATEWAY := .venv
LAB := .venv-lab
AIRFLOW := .venv-airflow
# Compiling everything takes longer than compiling what is imported, when it is ...
PIP_INSTALL := bin/python -m pip install -qq --disable-pip-version-check --prefer-binary --no-compile
# ... which has to be kept then, also where the environment says not to.
unexport PYTHONDONTWRITEBYTECODE

export ELASTIC_KERNELS_LAB := $(CURDIR)/$(LAB)/bin/jupyter-lab
RUN_PYTEST = $(GATEWAY)/bin/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help run test check test-cluster test-airflow bench pictures lock clean environments python browser
.DELETE_ON_ERROR:

help: ## say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 14

run: environments ## start a gateway and a JupyterLab, with kernels on this machine, until Ctrl-C (ARGS="--port 0")
	@exec $(GATEWAY)/bin/elastic-kernels up $(ARGS)

environments: ## make both environments, side by side
	@$(MAKE) -s --no-print-directory -j2 $(GATEWAY)/gateway.done $(LAB)/engine.done

test: environments $(GATEWAY)/test.done $(LAB)/hub.done browser check ## lint, types, and the tests that need no real cluster (ARGS="-k name")
	$(RUN_PYTEST) tests/unit tests/contract tests/hub tests/lab $(ARGS)

check: $(GATEWAY)/test.done ## lint, format and types only
	$(GATEWAY)/bin/ruff check .
	$(GATEWAY)/bin/ruff format --check .
	$(GATEWAY)/bin/mypy

test-cluster: environments $(GATEWAY)/test.done $(LAB)/hub.done ## the tests that need a real cluster: the one of KUBECONFIG
	@test -n "$(KUBECONFIG)" || { echo "make test-cluster needs a cluster: set KUBECONFIG." >&2; exit 2; }
	$(RUN_PYTEST) --real -m "not embedded" tests/contract tests/hub tests/cluster $(ARGS)

test-airflow: environments $(GATEWAY)/test.done $(AIRFLOW)/airflow.done ## the DAG of examples/airflow in a real Airflow (300 MB)
	ELASTIC_KERNELS_AIRFLOW=$(CURDIR)/$(AIRFLOW)/bin/python $(RUN_PYTEST) tests/airflow $(ARGS)

bench: environments $(GATEWAY)/test.done ## measure this project, stock Enterprise Gateway and the floor (ARGS=--quick); starts on KUBECONFIG's cluster
	$(GATEWAY)/bin/python -m bench $(ARGS)

pictures: environments $(GATEWAY)/test.done browser ## take docs/launcher.png and docs/notebook.png anew
	ELASTIC_KERNELS_PICTURES=$(CURDIR)/docs $(RUN_PYTEST) tests/lab/test_browser.py $(ARGS)

lock: ## renew the versions in requirements/ (needs Python 3.10 and 3.11: PYTHON310=... PYTHON311=...)
	$(PYTHON311) requirements/lock.py $(PYTHON310) $(PYTHON311)

clean: ## remove the environments and everything else that is made
	rm -rf $(GATEWAY) $(LAB) $(AIRFLOW) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

python:
	@test -n "$(PYTHON)" || { echo "This needs Python 3.10 or 3.11 with venv (on Debian and Ubuntu: apt-get install python3-venv), or PYTHON=path." >&2; exit 2; }

$(GATEWAY)/gateway.done: requirements/gateway.txt setup.cfg pyproject.toml | python
	@echo "Installing  the gateway's environment into $(GATEWAY)"
	@test -x $(GATEWAY)/bin/python || $(PYTHON) -m venv $(GATEWAY)
	@$(GATEWAY)/$(PIP_INSTALL) -r requirements/gateway.txt
	@$(GATEWAY)/$(PIP_INSTALL) --no-build-isolation --no-deps -e .
	@touch $@

$(GATEWAY)/test.done: requirements/test.txt $(GATEWAY)/gateway.done
	@echo "Installing  the test tools into $(GATEWAY)"
	@$(GATEWAY)/$(PIP_INSTALL) -r requirements/gateway.txt -r requirements/test.txt
	@touch $@

$(LAB)/lab.done: requirements/lab.txt | python
	@echo "Installing  JupyterLab's environment into $(LAB)"
	@test -x $(LAB)/bin/python || $(PYTHON) -m venv $(LAB)
	@$(LAB)/$(PIP_INSTALL) -r requirements/lab.txt
	@touch $@

# this library, for its papermill engine, which needs nothing of the gateway's side; not beside the gateway's own installation of it,
# because both write the same folder here
$(LAB)/engine.done: $(LAB)/lab.done $(GATEWAY)/gateway.done
	@$(LAB)/$(PIP_INSTALL) --no-build-isolation --no-deps -e .
	@touch $@

# without a warning that what the gateway's side of this library needs is not here: see engine.done
$(LAB)/hub.done: requirements/hub.txt $(LAB)/lab.done
	@echo "Installing  JupyterHub beside it, for the tests"
	@$(LAB)/$(PIP_INSTALL) --no-warn-conflicts -r requirements/lab.txt -r requirements/hub.txt
	@touch $@

$(AIRFLOW)/airflow.done: requirements/airflow.txt | python
	@echo "Installing  Airflow into $(AIRFLOW)"
	@test -x $(AIRFLOW)/bin/python || $(PYTHON) -m venv $(AIRFLOW)
	@$(AIRFLOW)/$(PIP_INSTALL) -r requirements/airflow.txt
	@touch $@

# what shows JupyterLab to the tests
browser:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing  Debian's chromium and chromium-driver"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null; \
	else echo "The lab tests need chromium and chromedriver on PATH (on Debian: the packages chromium and chromium-driver)." >&2; exit 2; fi
