# `make demo` and `make test` do all set-up themselves, inside this folder.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-oracle smoke lint format bench lock clean

install: $(VENV)/.installed

# --no-deps: the lock is complete, so pip has nothing to resolve. What builds the few
# packages that come as source is installed before them.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lm needs Python >= 3.11; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep -E '^(setuptools|setuptools-scm|vcs-versioning|packaging|wheel)==' requirements.lock)
	$(PIP) --no-build-isolation -r requirements.lock
	$(PIP) --no-build-isolation --editable .
	$(PIP) --upgrade --target $(VENV)/libtpu "$$(sed -n 's/^plan = \["\(.*\)"\]/\1/p' pyproject.toml)"
	@touch $@

demo: install
	bash experiments/recipes/demo.sh

test: install
	$(BIN)/python -m pytest

# Imported models beside transformers itself, in the environment of the peer.
test-oracle: install .venv-bench/.installed
	@references=$$(mktemp -d) && trap 'rm -rf "$$references"' EXIT && \
	  .venv-bench/bin/python tests/oracle/references.py "$$references" && \
	  LM_ORACLE_REFERENCES=$$references LM_ORACLE_PYTHON=.venv-bench/bin/python \
	    $(BIN)/python -m pytest tests/oracle/test_*.py

# What tells whether a pair of Python and jax works at all, in a minute or two; the test
# that kills runs takes as long as all others.
smoke: install
	$(BIN)/python -m pytest tests/test_configs.py tests/train/test_run.py tests/test_generate.py \
	  -k "not bit_equal"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/shellcheck --external-sources .ci/* experiments/*/*.sh experiments/*/*.sbatch

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The peers have an environment of their own. transformers reads tokenizers with
# sentencepiece and protobuf, and fills chat templates with jinja2.
bench: install .venv-bench/.installed
	$(BIN)/python -m experiments.benchmarks.train_step

.venv-bench/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check \
	  torch==2.13.0 'transformers>=5.20' sentencepiece protobuf jinja2 gensim==4.4.0
	@touch $@

# MaxText has jax 0.11.1 and Python 3.12: make .venv-maxtext/.installed MAXTEXT_PYTHON=…
# What it imports is named, as what it declares is ten times as much. libtpu is that of
# tools.plan.
MAXTEXT_PYTHON ?= python3.12
.venv-maxtext/.installed: Makefile
	$(MAXTEXT_PYTHON) -m venv .venv-maxtext
	.venv-maxtext/bin/python -m pip install --quiet --disable-pip-version-check \
	  jax==0.11.1 jaxlib==0.11.1 libtpu==0.0.52 flax optax orbax-checkpoint absl-py \
	  omegaconf pydantic ml-collections aqtp chex jaxtyping drjax qwix tokamax grain \
	  tensorboard sentencepiece pathwaysutils pillow tiktoken jsonlines nltk evaluate \
	  datasets transformers google-cloud-storage google-cloud-monitoring \
	  google-cloud-mldiagnostics cloud-accelerator-diagnostics ml-goodput-measurement \
	  math-verify jinja2 markupsafe
	.venv-maxtext/bin/python -m pip install --quiet --disable-pip-version-check --no-deps maxtext==0.2.5
	@touch $@

# Resolve again for both lines: jax 0.10.2 on Python 3.11, the newest on 3.12.
lock: install
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra dev --extra export \
	  --no-header --no-annotate pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv .venv312 .venv-bench .venv-maxtext runs data
