# `make demo` and `make test` need Python 3.10 or newer and make, nothing else. They set up .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= runs/digits
# One process for each core, up to four; the tests of a file share what they set up.
PYTEST_IN = $(1)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile
PYTEST := $(call PYTEST_IN,.venv) $(if $(COVERAGE),--cov --cov-report=term --cov-report=xml --cov-fail-under=$(COVERAGE))

.PHONY: demo test test-slow test-oldest test-newest lint docs wheel bench constraints clean

demo: .venv/ready
	$(BIN)/art-fingerprint bench --preset digits --out $(DEMO)

# `make test COVERAGE=92` also counts the lines of the package that run, and fails below 92 %.
test: .venv/ready
	$(PYTEST)

test-slow: .venv/ready
	$(PYTEST) -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini benchmarks examples

# The default tests with the oldest versions that pyproject.toml allows, and with the newest that there are.
test-oldest: .venv-oldest/ready
	$(call PYTEST_IN,.venv-oldest)

test-newest: .venv-newest/ready
	$(call PYTEST_IN,.venv-newest)

.venv-oldest/ready: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt -e ".[all]" --group test
	touch $@

.venv-newest/ready: pyproject.toml
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-newest/bin/python -m pip install --quiet --upgrade -e ".[all]" --group test
	touch $@

# Warnings are errors. The pages are docs/_build/index.html.
docs: .venv/ready
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

# What users get: the wheel alone, in an environment of its own, away from the sources. Only torch and CUDA's libraries
# are those of .venv, by links: the same versions, and five gigabytes that need not lie there twice.
LENT := torch torch-* torchgen triton* nvidia* cuda*
wheel: .venv/ready
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv build/clean
	build/clean/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	cd .venv/lib/python*/site-packages && for part in $(LENT); do \
	  test ! -e $$part || ln -s "$$PWD/$$part" "$(CURDIR)"/build/clean/lib/python*/site-packages/; done
	build/clean/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	cd build && clean/bin/python -c "import art_fingerprint.attacks, art_fingerprint.verifiers, art_fingerprint.reporting.published as p; print(p.__file__)"
	cd build && clean/bin/art-fingerprint list verifiers && clean/bin/art-fingerprint doctor

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
	{ echo '# The oldest versions that pyproject.toml allows, for `make test-oldest`. Made by `make constraints`.'; \
	  uv pip compile pyproject.toml --extra all --group test --universal --python-version 3.10 \
	    --resolution lowest-direct --no-header --no-annotate --no-emit-index-url --quiet; } > constraints-oldest.txt

clean:
	rm -rf .venv .venv-oldest .venv-newest build dist docs/_build runs
