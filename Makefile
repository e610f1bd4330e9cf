# Every target sets up .venv by itself, once; a second call finds the stamp and goes on.
PYTHON ?= python3
BIN    := .venv/bin
SHELL  := bash -o pipefail
ROOT_OK = $(if $(filter 0,$(shell id -u)),--allow-root)

run: .venv/stamp  ## the first hour: build/first_hour.html, build/memo.html, build/story.json
	@$(BIN)/python -m flm_nb.train.measure
	@$(BIN)/python docs/run_page.py nbs/walkthroughs/00_first_hour.ipynb build/first_hour.ipynb
	@$(BIN)/python docs/summary.py build/story.json

test: .venv/stamp  ## everything a change has to pass
	@$(BIN)/ruff check
	@$(BIN)/pytest

setup: .venv/stamp  ## the environment alone, with the profile of this machine

lab: .venv/stamp  ## JupyterLab on the home page
	@$(BIN)/jupyter lab $(ROOT_OK) nbs/index.ipynb

docs: .venv/stamp  ## the site, readable without a server: _docs/index.html
	@$(BIN)/sphinx-build --quiet --fail-on-warning -c docs -d .cache/doctrees nbs _docs
	@rm -rf jupyter_execute  # myst-nb leaves copies of the notebooks beside the site
	@echo "Open _docs/index.html"

pages: .venv/stamp  ## run every walkthrough in full; the site shows these outputs
	@$(BIN)/python -m flm_nb.train.measure
	@for page in nbs/walkthroughs/*.ipynb; do \
	    $(BIN)/python docs/run_page.py $$page build/$$(basename $$page) --save || exit 1; done
	@$(BIN)/nbdev-clean

export: .venv/stamp  ## after an edit in nbs/: package, outputs and README follow
	@$(BIN)/nbdev-export
	@$(BIN)/nbdev-test --save --n-workers 0 --skip-folder-re '^([_.]|walkthroughs)'
	@$(BIN)/python docs/quiet.py
	@$(BIN)/nbdev-clean
	@$(BIN)/python docs/readme.py

bench: .venv/stamp  ## side-by-side measurements: benchmarks/results/
	@for script in benchmarks/*.py; do echo "$$script"; $(BIN)/python $$script || exit 1; done

# The lock names every package, so pip has nothing to resolve; the second line adds the package
# itself and what torch needs on this platform beyond the lock (on a CPU build: nothing).
.venv/stamp: requirements.lock settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11) and "x")' 2>/dev/null || \
	    { echo "flm_nb needs Python 3.11 or newer with venv; try: make PYTHON=python3.11"; exit 1; }
	@echo "Setting up .venv: about 200 packages, two to four minutes..."
	@$(PYTHON) -m venv .venv || \
	    { echo "Python cannot make .venv, see above; on Debian: apt install python3-venv"; exit 1; }
	@$(BIN)/pip install -qq --no-deps -r requirements.lock && \
	    $(BIN)/pip install -qq --no-build-isolation -e . torch || \
	    { command -v cc >/dev/null || echo "There is no C compiler: if pip asks for one, install" \
	    "gcc (on Debian: build-essential)"; \
	    echo "Setup stopped in pip, see above; mend it and run make again"; exit 1; }
	@$(BIN)/python -m flm_nb.train.measure || \
	    { echo "Setup stopped while measuring this machine, see above"; exit 1; }
	@touch $@

.PHONY: run test setup lab docs pages export bench
