# make mnist, make cifar10: train and draw. make test: lint and tests. make report, make submission: the hand-in,
# with LAST=name FIRST=name ID=number. Each sets itself up first.
PYTHON ?= python3
RUN := .venv/bin/python

mnist: .venv/run
	$(RUN) arcface_mnist.py

cifar10: .venv/run
	$(RUN) arcface_cifar10.py

seeds: .venv/run
	$(RUN) -m experiment.seeds mnist
	$(RUN) -m experiment.seeds cifar10

test: .venv/test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest --cov --cov-report=term-missing:skip-covered

AUTHOR = --last "$(LAST)" --first "$(FIRST)" --id "$(ID)"

report: .venv/report
	$(RUN) report/submission.py report $(AUTHOR)

submission: .venv/report
	$(RUN) report/submission.py zip $(AUTHOR)

.venv/run: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

.venv/test: tests/requirements.txt requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet -r tests/requirements.txt
	touch $@

.venv/report: report/requirements.txt requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet -r report/requirements.txt
	touch $@

.PHONY: mnist cifar10 seeds test report submission
