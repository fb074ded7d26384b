# make quickstart   a small depth study on real English: trains, scores every layer, draws the report (minutes on two cores)
# make test         passes the tests; both set everything up in .venv first
# make check        lint and the fast tests, which train no run: three minutes on two cores
# make docs         the documentation site, in build/site
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])')
CONSTRAINTS := constraints/py$(VERSION).txt
QUICKSTART := runs/quickstart

# The tests of make check.
FAST := tests/test_imports.py tests/docs tests/config tests/data tests/stats \
	$(addprefix tests/analysis/test_,catalogue.py) \
	$(addprefix tests/model/test_,grouped_matmul.py loss.py router.py transformer.py) \
	$(addprefix tests/parallel/test_,devices.py layout.py xla_flags.py) \
	$(addprefix tests/plan/test_,hlo.py topologies.py) \
	$(addprefix tests/pretrained/test_,hf_config.py hf_tensors.py) \
	$(addprefix tests/report/test_,depth.py measures.py page.py verdicts.py) \
	$(addprefix tests/shell/test_,ending.py) \
	$(addprefix tests/storage/test_,checkpoint.py digest.py files.py journal.py ownership.py rundir.py) \
	$(addprefix tests/study/test_,study.py study_dir.py) \
	$(addprefix tests/train/test_,manifest.py optimizer.py)

.PHONY: quickstart test check docs test-slow test-faults test-aot test-gpu lint format bench gpu-bench plans check-python

quickstart: $(VENV)/demo
	$(BIN)/sparsecod sweep --sweep=configs/sweeps/smoke.py --workdir=$(QUICKSTART) --jobs=2
	$(BIN)/sparsecod report --workdir=$(QUICKSTART)

test: $(VENV)/dev
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2

check: lint
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 $(FAST)

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/docs
	$(BIN)/mkdocs build --strict

test-slow: $(VENV)/dev
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m slow -s

test-faults: $(VENV)/dev
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m faults -s

test-aot: $(VENV)/dev $(VENV)/tpu
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m aot

test-gpu: $(VENV)/dev $(VENV)/gpu
	JAX_PLATFORMS=cuda XLA_PYTHON_CLIENT_PREALLOCATE=false $(BIN)/python -m pytest -m gpu

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/dev
	$(BIN)/python benchmarks/step_statistics.py
	$(BIN)/python benchmarks/loop.py
	$(BIN)/python benchmarks/compile.py
	$(BIN)/python benchmarks/moe.py
	$(BIN)/python benchmarks/analysis.py
	$(BIN)/python benchmarks/watching.py

gpu-bench: $(VENV)/dev $(VENV)/gpu
	XLA_CLIENT_MEM_FRACTION=0.93 $(BIN)/python benchmarks/gpu.py

plans: export JAX_PLATFORMS = cpu
plans: $(VENV)/dev $(VENV)/gpu $(VENV)/tpu
	$(BIN)/python benchmarks/plans.py

check-python:
	@test -f $(CONSTRAINTS) || { echo "$$($(PYTHON) --version) is not supported: use Python 3.11, 3.12 or 3.13, for example make PYTHON=python3.12"; exit 1; }

# One marker file per set of extras; dev holds demo.
$(VENV)/demo $(VENV)/dev $(VENV)/docs $(VENV)/gpu $(VENV)/tpu: pyproject.toml constraints/*.txt | check-python
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[$(notdir $@)]'
	touch $@
