# For Linux and macOS; the README has the commands for Windows. Each target installs what it needs.
#   make mnist, make cifar10     train and draw
#   make seeds                   the same over several seeds, for the means with their intervals
#   make check, make test        the quick tests with lint and types, all tests
#   make report, make submission the PDF, and the zip file of the hand-in, both with
#                                LAST=mark FIRST=philip ID=0123456 and, if wanted, DATE=2026-12-01
PYTHON ?= python3
RUN := .venv/bin/python
NEEDED := import sys; sys.version_info >= (3, 11) or sys.exit('Python 3.11 or later is needed: \
	make PYTHON=python3.12, for example')
VENV = $(PYTHON) -c "$(NEEDED)" && $(PYTHON) -m venv .venv

mnist: .venv/run
	$(RUN) arcface_mnist.py

cifar10: .venv/run
	$(RUN) arcface_cifar10.py

seeds: .venv/study
	$(RUN) -m study.seeds mnist
	$(RUN) -m study.seeds cifar10

lint: .venv/test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m mypy --strict --cache-dir .mypy_cache/strict arcface_loss.py

check: lint
	$(RUN) -m pytest -n 2 -m "not slow"

test: lint
	$(RUN) -m pytest -n 2 --cov --cov-report=term-missing:skip-covered --cov-fail-under=95

AUTHOR = --last "$(LAST)" --first "$(FIRST)" --id "$(ID)" $(if $(DATE),--date "$(DATE)")

report: .venv/report
	$(RUN) report/submission.py report $(AUTHOR)

submission: .venv/report
	$(RUN) report/submission.py zip $(AUTHOR)

.venv/run: requirements.txt
	$(VENV)
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

.venv/study: study/requirements.txt requirements.txt
	$(VENV)
	$(RUN) -m pip install --quiet -r study/requirements.txt
	touch $@

.venv/test: tests/requirements.txt report/requirements.txt study/requirements.txt requirements.txt
	$(VENV)
	$(RUN) -m pip install --quiet -r tests/requirements.txt
	touch $@

.venv/report: report/requirements.txt study/requirements.txt requirements.txt
	$(VENV)
	$(RUN) -m pip install --quiet -r report/requirements.txt
	touch $@

.PHONY: mnist cifar10 seeds lint check test report submission
