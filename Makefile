# `make demo` and `make test` need Python 3.10 or newer and make, nothing else. They set up .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= runs/digits
# One process for each core, up to four; the tests of a file share what they set up.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-slow lint bench constraints clean

demo: .venv/ready
	$(BIN)/art-fingerprint bench --preset digits --out $(DEMO)

test: .venv/ready
	$(PYTEST)

test-slow: .venv/ready
	$(PYTEST) -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

# Set up anew when what is to be installed has changed.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e . --group dev
	touch $@

# torch and torchvision are a pair: their binaries must match.
constraints:
	printf 'torch==2.14.1\ntorchvision==0.29.1\n' > .pair.txt
	{ echo '# Versions that fit each other, for pip and uv. Made from pyproject.toml by `make constraints`.'; \
	  uv pip compile pyproject.toml --extra all --group dev --universal --python-version 3.10 -c .pair.txt \
	    --no-header --no-annotate --no-emit-index-url --quiet; } > constraints.new
	mv constraints.new constraints.txt && rm .pair.txt

clean:
	rm -rf .venv runs
