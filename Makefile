# On a fresh machine with Python 3.11+ and make, run `make demo` or `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
RUN := $(VENV)/.run
READY := $(VENV)/.ready
DEMO := demo
# The cores of a small machine.
WORKERS ?= 2
# Tests start many programs: Python must keep the compiled code of our modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-external check setup wheels native docs clean

setup: $(READY)

NATIVE := hatch_build.py $(wildcard eomt_deploy/processing/native/*.[ch])

# Without isolation, Zig has the same path each time, and its cache is used: see hatch_build.py.
$(RUN): pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(PIP) editables hatchling ziglang
	$(PIP) --no-build-isolation -e '.[cpu,export]'
	@touch $@

$(READY): $(RUN)
	$(PIP) --no-build-isolation -e '.[cpu,export,batch,serve,dev,docs]'
	@touch $@

demo: $(RUN)
	$(BIN)/eomt-deploy demo -o $(DEMO)
	$(BIN)/eomt-deploy bench --engine $(DEMO)/tiny.onnx --image examples/scenes/scene-1.png --json $(DEMO)/bench.json

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -n $(WORKERS)
	$(BIN)/lint-imports --no-logo
	$(BIN)/python docs/check_links.py

PYTEST := $(BIN)/python -m pytest --dist worksteal

test: check
	$(PYTEST) -n $(WORKERS) -m "not external and not slow"
	@echo "Not run: tests with Ray, browsers, compilers and many commands; see make test-external."

# Few tests, but 40% of the time of all: they start many processes, most of other projects. They
# often wait for these, so there is one worker more.
test-external: $(READY)
	$(PYTEST) -n $$(($(WORKERS) + 1)) -m "external and not slow"

# Warnings are errors, e.g. a link to a page or heading that does not exist.
docs: $(READY)
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

# One wheel per platform; Zig cross-compiles all of them on this machine.
wheels: $(READY)
	for target in linux-x86_64 linux-aarch64 darwin-arm64 darwin-x86_64 windows-amd64; do \
		EOMT_DEPLOY_TARGET=$$target $(BIN)/python -m build --wheel . || exit 1; done

# The C library for all platforms and for browsers, in dist/native: see docs/cpp.md.
native: $(READY)
	$(BIN)/python hatch_build.py dist/native

clean:
	rm -f eomt_deploy/processing/native/pixels-* eomt_deploy/processing/native/eomt.wasm
	rm -rf $(VENV) $(DEMO) docs/_build dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
