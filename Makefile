.DEFAULT_GOAL := help
.PHONY: help demo test format clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo:  ## set up and run the demonstration on the embedded sample
	@scripts/demo.sh

test:  ## set up, lint, check the format and run the default tests
	@scripts/test.sh

format:  ## sort imports, mend what ruff can mend, format
	@scripts/setup.sh
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

clean:  ## remove what builds and tests leave (keeps .venv and runs)
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -path ./runs -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
