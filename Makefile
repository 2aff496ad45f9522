# make demo: everything from nothing; make test: lint, types, tests. Both set up what they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-slow lint clean
.DELETE_ON_ERROR:

setup: $(READY)

# The lock is complete, so nothing is resolved (--no-deps): exactly these versions or an error.
# torch comes without CUDA where there is no GPU; with one, it brings its own CUDA libraries.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
	  { echo "igdit needs Python 3.11 or newer; try: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "no venv module: apt-get install python3-venv"; exit 1; }
	@torch=$$(grep '^torch==' requirements.lock); \
	if nvidia-smi -L >/dev/null 2>&1; then \
	  echo "GPU found: $$torch with CUDA"; $(BIN)/pip install -qq $$torch; \
	else \
	  $(BIN)/pip install -qq --no-deps "$$torch+cpu" 2>/dev/null || { \
	    echo "no CPU build of $$torch in pip's indexes: taking the default one (large; see docs/install.md)"; \
	    $(BIN)/pip install -qq $$torch; }; \
	fi
	@grep -v '^torch==' requirements.lock > $(VENV)/others.txt
	@$(BIN)/pip install -qq --no-deps -r $(VENV)/others.txt
	@$(BIN)/pip install -qq --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	@$(BIN)/igdit run digits

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -n 2

# A file of tests stays in one process; those that take long are begun first (tests/conftest.py).
test: lint
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/pytest -m slow

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
