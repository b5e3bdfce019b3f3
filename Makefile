# `make demo` and `make test` need Python 3.11 to 3.13 and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: help demo test test-faults coverage check docs audit format benchmark clean

help:
	@echo "make demo       render scans, find a classifier, let new scans arrive; two pages (7 minutes)"
	@echo "make test       run the tests (12 to 20 minutes on two cores)"
	@echo "make test-faults break things in the middle, on clusters of three nodes (27 to 40 minutes)"
	@echo "make coverage   check that the tests of pure functions reach every line (a minute)"
	@echo "make check      lint, types, docstrings, the order of packages, spelling (half a minute)"
	@echo "make docs       build the documentation site into build/site (seconds)"
	@echo "make audit      look for known holes in the packages (needs the network)"
	@echo "make format     put the code into shape (seconds)"
	@echo "make benchmark  measure what docs/scaling.md claims of speed (long; on a quiet machine)"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "visao_ray needs Python 3.11 to 3.13: make PYTHON=python3.12 …"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing visao_ray into $(VENV) (TensorFlow and Ray: about 1.5 GB)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) --editable ".[dev]"
	@touch $@

$(VENV)/.docs: $(VENV)/.run
	$(PIP) --editable ".[docs]"
	@touch $@

# The second act: a hundred unlabelled scans arrive beside the others. The same extraction reads those
# alone, the model predicts them, and a page shows which to look at first.
DEMO := out/demo

demo: $(VENV)/.run
	$(BIN)/python jobs/pipeline.py --dataset vazios --images 1200 --difficult 0.3 --wrong-labels 0.01 \
	  --weights imagenet --weights-fallback random --trials 8 --epochs 20 --out $(DEMO)
	$(BIN)/python jobs/render.py --dataset vazios --images 100 --difficult 0.3 --seed 1 --unlabelled \
	  --out $(DEMO)/arrivals
	cp -R $(DEMO)/arrivals/images/arrived $(DEMO)/synthetic/images/
	$(BIN)/python jobs/extract.py --data $(DEMO)/synthetic/images --store $(DEMO)/store \
	  --weights imagenet --weights-fallback random --batch arrivals
	$(BIN)/python jobs/predict.py --model $(DEMO)/sweep/head.keras --store $(DEMO)/store \
	  --evaluation $(DEMO)/evaluate/evaluation.json --batch arrivals --out $(DEMO)/day
	@echo "look at $(DEMO)/report.html (the model) and $(DEMO)/day/day.html (the new scans)"

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not faults and not long"

# In two processes: one has the tests that mostly wait (for nodes, leases, commits), the other those
# that mostly compute. Each has its own clusters; see `FAULT_GROUPS` in tests/conftest.py.
test-faults: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "faults or long" $(FLAGS)

# The tests of modules that are pure functions; `[tool.coverage]` names the modules.
PURE := tests/datasets/test_splits.py tests/datasets/test_decisions.py tests/evaluation/test_metric.py \
  tests/evaluation/test_classification.py tests/evaluation/test_comparison.py \
  tests/evaluation/test_probabilities.py \
  tests/evaluation/test_ranking.py tests/store/test_store.py tests/training/test_schedule.py \
  tests/tuning/test_objective.py tests/tuning/test_ordered_searcher.py

coverage: $(VENV)/.dev
	$(BIN)/coverage run -m pytest -q -p no:xdist $(PURE)
	$(BIN)/coverage report

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/pydoclint --quiet visao_ray jobs examples benchmarks

# With --quiet it would not count warnings. NO_MKDOCS_2_WARNING: the theme advertises its successor.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/site/index.html"

# Packages that the index knows nothing of are listed, with the reason.
audit: $(VENV)/.dev
	$(BIN)/pip-audit --progress-spinner off --disable-pip --no-deps --requirement constraints.txt

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(VENV)/.dev
	$(BIN)/python benchmarks/extraction.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/audit.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
