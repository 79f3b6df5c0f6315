# The commands of a working day; CONTRIBUTING.md says what for.
PYTHON ?= python

# what a change of the method, of settings or of docs breaks first: under two minutes on 2 cores
FAST = tests/algorithm $(patsubst %,tests/test_%.py,constraints docs docs_site doctests imports mutations settings) -k "not microbatches"

.PHONY: fast test lint docs site smoke

fast:
	$(PYTHON) -m pytest $(FAST)

test:
	$(PYTHON) -m pytest
	$(PYTHON) -m pytest -m slow

lint:
	ruff check .
	ruff format --check .
	pyright
	shellcheck -x launch/*.sh .ci/run
	hadolint Dockerfile

docs:
	$(PYTHON) -m exit_jax.config.listing > docs/settings.md
	$(PYTHON) -m exit_jax.workdir.metric_table > docs/metrics.md
	$(PYTHON) docs/write_methods.py > docs/methods.md

site:
	mkdocs build --strict

smoke:
	$(PYTHON) -m exit_jax.main --config smoke --workdir "$$(mktemp -d)/smoke"
