.DEFAULT_GOAL := help
.PHONY: help demo test test-kill test-kill-workers bench format clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

demo:  ## set up and run the demonstration on the embedded sample
	@scripts/demo.sh

test:  ## set up, lint, check the format and run the default tests
	@scripts/test.sh

test-kill:  ## SIGKILL a pre-training run fifty times and a fine-tuning run ten times, and compare losses and variables
	@scripts/setup.sh
	@.venv/bin/python -m tests.kill_test --kills 50 --backbone resnet18
	@.venv/bin/python -m tests.finetune_kill_test --kills 10

test-kill-workers:  ## SIGKILL a random worker of a run of two, ten times, and compare likewise
	@scripts/setup.sh
	@.venv/bin/python -m tests.worker_kill_test --kills 10

bench:  ## time what is claimed beside its peers, on a machine that does nothing else (PHOTOS=folder for the input)
	@scripts/bench.sh $(if $(PHOTOS),--data $(PHOTOS))

format:  ## sort imports, mend what ruff can mend, format
	@scripts/setup.sh
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

clean:  ## remove what builds and tests leave (keeps .venv and runs)
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -path ./runs -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
