# Needs python3 (3.10 to 3.13) and make; everything is installed into .venv, once. `make help` lists the commands.
#
# Without make, on Windows (elsewhere python is python3, and .venv\Scripts\ is .venv/bin/); docs/reproduce.md says the same:
#   python -m venv .venv
#   .venv\Scripts\python -m pip install --require-hashes -r requirements.lock
#   .venv\Scripts\python -m pip install --no-deps --no-build-isolation -e .
#   .venv\Scripts\iflow reproduce
PROFILE ?= quick
DEVICE ?= auto
JOBS ?= 2
MINUTES ?= 9
PYTHON ?= python3

$(if $(wildcard iflow_lib/__init__.py),,$(error run make in the folder of this Makefile))
.PHONY: help reproduce reference test test-all browser gpu workshop-check lab lock clean

help:
	@echo 'make reproduce   run the main job into results/runs/PROFILE  [PROFILE=smoke|quick|full] [DEVICE=auto|cpu|cuda|mps]'
	@echo 'make reference   make the results of the plane, images and recipe again and compare  [JOBS=2 runs at once]'
	@echo 'make test        check every module, every notebook and the browser  [JOBS=2 at once]'
	@echo 'make test-all    the same, and what takes long: killed runs, solutions, whole profiles'
	@echo 'make browser     notebooks in JupyterLab, and a report, in a headless Chromium (part of make test where there is one)'
	@echo 'make gpu         checks, speed, sampling and quality on a GPU, into results/reference/bench  [MINUTES=9] [DEVICE=cuda:1]'
	@echo 'make workshop-check   is this machine ready for a workshop? [PROFILE] [DEVICE]'
	@echo 'make lab         open JupyterLab on the notebooks'
	@echo 'make lock        pin the newest versions that pyproject.toml allows: requirements.lock, environment.yml'
	@echo 'make clean       remove .venv, results/runs and caches'
	@echo 'Another Python: make PYTHON=python3.12 ...'

reproduce: .venv/installed
	.venv/bin/iflow reproduce --profile $(PROFILE) --device $(DEVICE)

# The tables of the plane, the images and the recipe again, into results/runs/reference, and the tidy ones compared.
# Stopped at any time, it continues.
ELSEWHERE = --runs results/runs/reference/runs --out results/runs/reference
reference: .venv/installed
	.venv/bin/python -m experiments.plane --jobs $(JOBS) $(ELSEWHERE)
	.venv/bin/python -m experiments.images --checkpoints results/runs/reference/checkpoints $(ELSEWHERE)
	.venv/bin/python -m experiments.image_methods --jobs $(JOBS) $(ELSEWHERE)
	.venv/bin/python -m experiments.image_methods --jobs $(JOBS) $(ELSEWHERE) --sets emoji \
		--systems rectified_velocity rectified_integral rectified_additivity rectified_consistency
	.venv/bin/python -m experiments.recipe $(ELSEWHERE)
	.venv/bin/python -m experiments.plane_tuning --jobs $(JOBS) $(ELSEWHERE)/bench
	.venv/bin/iflow verify results/runs/reference

# Every module, every notebook once, and the browser: 10 minutes on two idle cores; the goal is 8.
test: .venv/installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(JOBS) --dist worksteal -m 'not long' $(COVERAGE)

# The same, with the share of the code that was run, and then what takes long: runs that are killed, the exercises'
# solutions, whole profiles. The goal is 20 minutes.
test-all: COVERAGE = --cov=iflow_lib --cov=iflow_runner --cov-report=term --cov-fail-under=95
test-all: test
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(JOBS) --dist worksteal -m long

# Screenshots: results/runs/lab-screenshots.
browser: .venv/installed
	@for name in "$$CHROMIUM" chromium chromium-browser google-chrome google-chrome-stable; do \
		[ -n "$$name" ] && command -v "$$name" >/dev/null && exit 0; done; \
		echo 'error: no Chromium. On Debian or Ubuntu: apt install chromium; elsewhere put chromium or google-chrome on the' \
			'PATH, or set CHROMIUM to its program' >&2; exit 1
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -rs tests/test_lab.py tests/test_report.py

# On a machine with a GPU; called again, it does what is missing. Without this .venv, where torch, numpy, pandas, safetensors,
# tqdm and scipy are installed: python -m experiments.gpu
gpu: .venv/installed
	.venv/bin/python -m experiments.gpu --minutes $(MINUTES) --device $(DEVICE)

# Can a workshop be held on this machine? Runs the 90-minute plan of docs/workshop.md without a network.
workshop-check: .venv/installed
	.venv/bin/python -m experiments.workshop_check --profile $(PROFILE) --device $(DEVICE)

lab: .venv/installed
	.venv/bin/jupyter lab notebooks

# The stamp comes last: an interrupted install starts anew. uv, itself pinned and hashed in the lock, installs
# the rest in a tenth of pip's time.
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 13) or sys.exit( \
		"error: Python 3.10 to 3.13 is needed, this is %d.%d; try: make PYTHON=python3.12" % v)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'error: this Python has no venv; on Debian or Ubuntu: apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	.venv/bin/uv pip install --python .venv/bin/python --require-hashes -r requirements.lock
	.venv/bin/uv pip install --python .venv/bin/python --no-deps --no-build-isolation -e .
	@touch $@

# One version of each package for all Pythons and systems where there is one, so that numbers agree between them.
# environment.yml repeats the pins: pip accepts no hashes beside `-e .`. Not locked: forest, a neighbour of 300 MB. Last: are there wheels for each of them?
EXTRAS = notebooks frames scale export serve hub logging fid dev
lock: .venv/installed
	.venv/bin/uv pip compile pyproject.toml $(EXTRAS:%=--extra %) --universal --python-version 3.10 --fork-strategy fewest \
		--generate-hashes --upgrade --quiet --custom-compile-command 'make lock' --output-file requirements.lock
	sed -n '1,/- -e \./p' environment.yml > environment.tmp
	sed -n 's/^\([a-z0-9].*[^ ]\) \\$$/      - \1/p' requirements.lock >> environment.tmp
	mv environment.tmp environment.yml
	for python in 3.10 3.11 3.12 3.13; do for system in linux macos windows; do \
		MACOSX_DEPLOYMENT_TARGET=14.0 .venv/bin/uv pip install --python .venv/bin/python --target .venv/none \
			--dry-run --quiet --only-binary :all: --python-version $$python --python-platform $$system \
			--require-hashes -r requirements.lock && echo "locked: Python $$python, $$system" || exit 1; done; done

clean:
	rm -rf .venv results/runs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage
	find iflow_lib iflow_runner experiments notebooks tests -depth \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} + 2>/dev/null || true
