# Everything a person types. `make demo` on a fresh clone installs, trains and shows a model.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := jobs/configs/demo.yaml
SLURM := slurmctld slurmd slurm-client munge iproute2
REPORT = $(if $(ONLY),,LDM_FAULTS_REPORT=docs/results/faults.md)

# Containers often set it. Each process of a run would compile anew what it imports: `make demo` 11 s in place of 4 s,
# once all is there.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow coverage test-cluster test-faults lint ui bench clean install

install: $(VENV)/.installed

# torch first and alone: an open range that a later package asks for would bring another build of it. No byte code is
# compiled ahead: most of it is never imported. uv does in a third of the time what pip does where it cannot be had.
PIP = $(BIN)/pip install --quiet --no-compile --constraint constraints.txt
UV = $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt
$(VENV)/.runs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) uv || true
	$(UV) --editable . || $(PIP) --editable .
	touch $@

$(VENV)/.installed: $(VENV)/.runs
	$(UV) --editable '.[dev,geo,lora,medical,s3,sound,sweep,ui,video]' || \
	  $(PIP) --editable '.[dev,geo,lora,medical,s3,sound,sweep,ui,video]'
	touch $@

demo: $(VENV)/.runs
	$(BIN)/ldm run --config $(DEMO)

# A file's tests by one process, of one thread: what they share is made once. No more processes than cores: each imports
# all anew, which costs more than what is gained while some test waits.
TESTS = -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=25
test: install
	OMP_NUM_THREADS=1 $(BIN)/python $(TESTS)

# as long again: Ray with kills and a job, resumes of all that is trained, compiled networks, pages in a browser
test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python $(TESTS) -m slow

# which lines of the driver's processes both run; a sixth more time
coverage: install
	OMP_NUM_THREADS=1 $(BIN)/python -m slipcover --source pipeline,models $(TESTS) -m 'not cluster and not faults'

# a Slurm cluster of network namespaces on this machine; root only. Without the daemons the tests skip and say so.
# `make test-cluster ONLY="time_limit or scancel"`: these tests alone, and no report
test-cluster: install
	@command -v slurmctld slurmd munged sbatch ip > /dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SLURM) > /dev/null; } || true
	$(REPORT) $(BIN)/python -m pytest -m cluster tests/cluster $(if $(ONLY),-k "$(ONLY)")

# an hour on two cores; ONLY as above
test-faults: install
	$(REPORT) $(BIN)/python -m pytest -m faults tests/faults $(if $(ONLY),-k "$(ONLY)")

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

ui: install
	$(BIN)/ldm ui

bench: install
	$(BIN)/python tests/benchmarks/run.py

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache *.egg-info
