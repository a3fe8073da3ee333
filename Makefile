# make mnist, make cifar10: train and draw. make test: lint and tests. Each sets itself up first.
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

.venv/run: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

.venv/test: tests/requirements.txt requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet -r tests/requirements.txt
	touch $@

.PHONY: mnist cifar10 seeds test
