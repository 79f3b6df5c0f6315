# The commands of a working day; CONTRIBUTING.md says what for.
PYTHON ?= python

# what a change of the method, of settings or of docs breaks first: under two minutes on 2 cores
FAST = tests/algorithm tests/test_config.py tests/test_docs.py tests/test_doctests.py tests/test_imports.py \
       tests/test_mutations.py tests/test_settings.py tests/policy/test_choice.py tests/policy/test_stops.py

.PHONY: fast test lint docs smoke

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

docs:
	$(PYTHON) -m exit_jax.config.listing > docs/settings.md

smoke:
	$(PYTHON) -m exit_jax.main --config configs/smoke.py --workdir "$$(mktemp -d)/smoke"
