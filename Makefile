# make search   set up, and search for a cell on cluttered digits: minutes on two CPU cores
# make test     set up, and run every test
# make check    lint, format and types
# make bench    measure speed; prints tables, writes nothing
# make gpu      check and measure on a GPU: ten minutes at most, writes a record
# make clean    remove the environment (runs and data stay)

PYTHON ?= python3
BIN := .venv/bin
# The found cell does not depend on how many processes search for it.
PROCESSES ?= $(shell $(PYTHON) -c "import os; print(min(2, os.cpu_count() or 1))")
SEARCH_FLAGS ?= --set cluttered_digits --estimate alone --candidate_epochs 4 --no_cutout --pop_size 12 --generations 3 \
  --init_channels 8 --layers 3 --batch_size 64 --finalists 3 --final_epochs 10 --final_learning_rate 0.1 --baseline 6

.PHONY: search test check bench gpu clean

search: .venv/run
	$(BIN)/torchrun --standalone --nproc_per_node $(PROCESSES) train_search.py $(SEARCH_FLAGS)

test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

bench: .venv/dev
	$(BIN)/python benchmarks/candidate.py
	$(BIN)/python benchmarks/input.py
	$(BIN)/python benchmarks/network.py

gpu: .venv/dev
	$(BIN)/python benchmarks/gpu.py

clean:
	rm -rf .venv

# A stamp says that the requirements are installed; it is older than a requirements file that changed.
.venv/run: requirements.txt
	$(PYTHON) -c "import sys; v = sys.version_info; sys.exit(v < (3, 11) and f'Python 3.11 or newer is needed; {sys.executable} is {v.major}.{v.minor}: make PYTHON=...')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/dev: .venv/run requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@
