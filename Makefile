# Everything a fresh machine needs: Python 3.11+ and make. Each target sets up what it uses.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   ?= demo-zoo

.PHONY: demo test format lint types tests docs reference studies twins storm bench setup clean help

help:            ## list the targets
	@grep -E '^[a-z]+: .*##|^[a-z]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

setup: $(STAMP)  ## make the virtual environment
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24" -c constraints.txt
	$(BIN)/python -m pip install --quiet -e ".[data,text,hub,ray,dev,docs]" -c constraints.txt
	@touch $@

demo: $(STAMP)   ## grow, measure and label 126 digit networks; write a report
	$(BIN)/zoarium demo -o $(DEMO) --overwrite

test: $(STAMP) lint types tests docs  ## every check

format: $(STAMP) ## rewrite the code in the house format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

lint: $(STAMP)   ## format and lint, read only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/towncrier build --draft --version next > /dev/null

types: $(STAMP)  ## static types
	$(BIN)/pyright --pythonpath $(BIN)/python

tests: $(STAMP)  ## tests and doctests, with coverage of the public API
	tools/ensure_chromium.sh
	tools/ensure_checkpoints.sh
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered

docs: $(STAMP)   ## build the site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

studies: $(STAMP) ## run every study on fresh seeds and rewrite docs/studies.md
	$(BIN)/zoarium study run --all --store studies/results
	$(BIN)/zoarium study page --results studies/results -o docs/studies.md

reference: $(STAMP) ## rewrite docs/reference/cli.md from the commands themselves
	$(BIN)/typer zoarium.cli.app utils docs --name zoarium \
	| sed -e 's/^# `zoarium`$$/# Command line/' -e 's/<span style="font-weight: bold">\([^<]*\)<\/span>/`\1`/g' \
	> docs/reference/cli.md

twins: $(STAMP)  ## grow and label the offline twins of the twelve published zoos and rewrite docs/twins.md
	$(BIN)/zoarium twins run --all --store studies/twins
	$(BIN)/zoarium twins page --results studies/twins -o docs/twins.md
storm: $(STAMP)  ## kill a zoo's whole life at random, 60 times, and compare the bits (some minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/storm.py $$(mktemp -d) --kills 60

bench: $(STAMP)  ## time us and the peers in the same run (its own environment, several minutes)
	benchmarks/run.sh

clean:           ## remove what the targets made
	rm -rf $(VENV) site build dist $(DEMO) .pytest_cache .ruff_cache .hypothesis .coverage
