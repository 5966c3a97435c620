# make reproduce [PRESET=quick|smoke|medium|paper]   the figures and tables, from nets trained here
# make test                                          everything that CI checks: tests, and the notebooks meanwhile
# make test-long                                     what takes minutes each: kills, clusters, JupyterLab in a browser
# make test-gpu                                      what needs a CUDA GPU: its tests, times of kernels, the whole benchmark
# PYTHON=python3.12 chooses the interpreter, RESLIB_DATA=/path the data root.
PRESET ?= quick
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Of a package with __all__ pdoc leaves out the modules, unless they are named.
MODULES = reslib $(shell ls $$(dirname $$(grep -l ^__all__ reslib/*/__init__.py) | sed 's|$$|/*.py|') | grep -v __ | \
  sed 's|/|.|g; s|\.py$$||')

.PHONY: reproduce test test-long test-gpu install check lab report verify docs links clean

reproduce: install
	$(BIN)/reslib reproduce --preset $(PRESET)

test: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} RESLIB_PRESET=smoke RESLIB_PROGRESS=off RESLIB_RESULTS=$$(mktemp -d) \
	  $(BIN)/python -m pytest -q -p no:cacheprovider --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks \
	  >$(STAMP).notebooks 2>&1 & notebooks=$$!; \
	trap 'kill $$notebooks' INT TERM; \
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests; tests=$$?; \
	wait $$notebooks; checked=$$?; cat $(STAMP).notebooks; exit $$((tests ? tests : checked))

test-long: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[cluster]"
	$(BIN)/python -m pytest -q --long tests

test-gpu: install
	@$(BIN)/python -c "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 'make test-gpu: no CUDA GPU here')"
	$(BIN)/python -m pytest -q -m gpu tests
	$(BIN)/python scripts/thin_timing.py
	$(BIN)/reslib bench --whole

lab: install
	$(BIN)/jupyter lab notebooks

report: install
	$(BIN)/reslib report

verify: install
	$(BIN)/reslib verify

docs: install
	$(BIN)/pdoc --output-directory docs/api --docformat markdown $(MODULES)

links: install
	$(BIN)/python scripts/links.py

install: $(STAMP)

$(STAMP): pyproject.toml scripts/preflight.py
	@command -v $(PYTHON) >/dev/null || { echo "reslib needs Python 3.11 to 3.13: '$(PYTHON)' is not on the PATH (set PYTHON=...)"; exit 1; }
	@$(PYTHON) scripts/preflight.py $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[notebooks,test]"
	@touch $@

check: ; @$(PYTHON) scripts/preflight.py $(VENV)

clean:
	rm -rf $(VENV) build *.egg-info
