"""Every family beside transformers itself; run by `make test-oracle`.

LM_ORACLE_REFERENCES is a folder with all cases of `references.py`. LM_ORACLE_PYTHON is
the Python that has transformers, which loads what is exported here.
"""

import functools
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.tools import hf_cases

REFERENCES = Path(os.environ["LM_ORACLE_REFERENCES"])
CASES = sorted(path.name for path in REFERENCES.iterdir() if path.is_dir())


def cases_with(name):
    return [
        case for case in CASES if name in np.load(REFERENCES / case / "reference.npz")
    ]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Returns cases by their names, each imported once."""
    folder = tmp_path_factory.mktemp("oracle")
    tokenizer = hf_cases.save_tokenizer(folder / "tokenizer")

    @functools.cache
    def case(name):
        return hf_cases.open_case(REFERENCES / name, folder / "imported", tokenizer)

    return case


def test_all_cases_are_there():
    assert len(CASES) == 34


@pytest.mark.parametrize("name", CASES)
def test_outputs(case, name, record_property):
    record_property("error", hf_cases.check_outputs(case(name)))


@pytest.mark.parametrize("name", cases_with("greedy"))
def test_greedy_text(case, name):
    hf_cases.check_greedy(case(name))


@pytest.mark.parametrize("name", cases_with("labels"))
def test_gradients(case, name, tmp_path, record_property):
    record_property("error", hf_cases.check_gradients(case(name), tmp_path))


@pytest.mark.parametrize("name", CASES)
def test_what_is_exported_loads_there(case, name, tmp_path):
    output = tmp_path / "exported"
    hf_cases.check_export(case(name), output)
    script = Path(__file__).with_name("references.py")
    words = [
        os.environ["LM_ORACLE_PYTHON"],
        script,
        "--check",
        output,
        REFERENCES / name,
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(distance < 1e-6 for distance in found.pop("outputs").values())
    assert found == {"warnings": [], "keys": {}, "tensors": [], "config": []}
    assert done.returncode == 0
