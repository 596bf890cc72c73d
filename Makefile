# Two commands do everything: `make demo` and `make test`. Both install into .venv first.
PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

# One BLAS and OpenMP thread for each process: workers are the parallelism.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1

.PHONY: demo test test-slow check wheel-test docs poster poster-smoke peers bench screenshots model clean

demo: $(VENV)/.installed
	@mkdir -p demo
	$(BIN)/sfxreduce simulate --out demo/run.zarr --experiment photosystem-i-8kev --events 160 --hit-rate 0.15 --seed 1 --overwrite
	$(BIN)/sfxreduce filter --in demo/run.zarr --out demo/hits.zarr --cxi demo/hits.cxi --report demo/report.html --overwrite
	$(BIN)/sfxreduce verify --in demo/hits.zarr --against demo/run.zarr
	@echo "The report: $(CURDIR)/demo/report.html"

# Half the time on two cores. A file's tests stay together: they share what they have prepared.
JOBS ?= 2

test: check wheel-test
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What ships: the wheel alone, in a folder of its own, with the working tree out of reach.
wheel-test: $(VENV)/.installed-dev
	rm -rf build/wheel && mkdir -p build
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel . > build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --target build/wheel/site build/wheel/*.whl
	cd build/wheel && PYTHONPATH=site ../../$(BIN)/python ../../tests/check_wheel.py

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W -b html docs docs/_build/html

poster: $(VENV)/.installed
	$(BIN)/python examples/reproduce_poster.py --out docs/results/poster.txt

poster-smoke: $(VENV)/.installed
	$(BIN)/python examples/reproduce_poster.py --scale 0.1

# The peak finders that the benchmarks compare with, away from what sfxreduce needs.
peers: $(PEERS)/.installed

# All speed benchmarks, of our own and of the peers; about twenty minutes on a quiet machine.
bench: $(VENV)/.installed-bench peers
	$(BIN)/python benchmarks/run.py --out docs/results/speed

# The pictures of the documentation, from a run that is simulated for them; needs Chromium.
screenshots: $(VENV)/.installed-dev
	$(BIN)/python examples/screenshots.py

model: $(VENV)/.installed
	$(BIN)/python examples/make_default_model.py

clean:
	rm -rf $(VENV) $(PEERS) build dist demo docs/_build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV): about 2 GB with torch, some minutes"
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e ".[dev,euxfel]"
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(PIP) -e ".[dev,euxfel,bench]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-dev
	$(PIP) -e ".[dev,euxfel,docs]"
	@touch $@

# Without what they depend on: Kerberos and MPI would have to be built, and the search uses neither.
$(PEERS)/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r $<
	@touch $@
