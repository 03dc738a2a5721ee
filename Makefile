# Everything runs from .venv, which the first target builds; the system's Python is only asked to create it.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
# Address of a torch wheel index, such as PyTorch's for CPU-only wheels; empty takes pip's default.
TORCH  ?=
# Threads that wait give their core to others: on a busy machine small networks run many times faster.
export OMP_WAIT_POLICY ?= PASSIVE

help: ## this list
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## */\t/' | expand -t 12
demo: $(VENV)/.installed ## make a small CNN on scikit-learn's digits smaller, in under a minute
	$(BIN)/simprune compress recipe=digits
	@echo "next, whole blocks alone, which save time: $(BIN)/simprune compress recipe=depth_only"
	@echo "next, the smallest network that still passes its checks: $(BIN)/simprune compress recipe=smallest"
test: $(VENV)/.installed ## run the tests, warnings are errors
	$(BIN)/python -m pytest -q -n auto
lint: $(VENV)/.installed ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/pyright
docs: $(VENV)/.installed ## build the documentation into site/, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
bench: $(VENV)/.installed ## run the benchmarks
	$(BIN)/python -m benchmarks

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt $(if $(strip $(TORCH)),--extra-index-url $(TORCH)) -e '.[dev]'
	touch $@

.PHONY: help demo test lint docs bench
