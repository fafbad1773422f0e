"""x"""
import pytest
from pathlib import Path
from tests.tools import hf_cases as hf
FIXTURES = Path(__file__).parent / "fixtures/huggingface"
CASES = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())
PLACES = [n for n in CASES if hf.has_places(FIXTURES/n)]
def refs(name): return (FIXTURES/name/"reference.npz")
import numpy as np, functools
def have(key): return [n for n in CASES if key in np.load(refs(n))]

@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    tokenizer = hf.save_tokenizer(folder / "tokenizer")
    @functools.cache
    def case(name): return hf.open_case(FIXTURES/name, folder, tokenizer)
    return case

@pytest.mark.parametrize("name", CASES)
def test_outputs(case, name):
    e = hf.error(case(name), hf.PADDED); print("ERR", name, e)
    assert e <= hf.TOLERANCE
@pytest.mark.parametrize("name", PLACES)
def test_packed(case, name):
    e = hf.error(case(name), hf.PACKED); print("PERR", name, e)
    assert e <= hf.TOLERANCE
@pytest.mark.parametrize("name", have("greedy"))
def test_greedy(case, name):
    assert hf.continue_greedily(case(name)).tolist() == case(name).reference["greedy"].tolist()
@pytest.mark.parametrize("name", have("labels"))
def test_grad(case, name, tmp_path):
    print("GERR", name, hf.check_gradients(case(name), tmp_path))
@pytest.mark.parametrize("name", CASES)
def test_export(case, name, tmp_path):
    hf.export(case(name).workdir, tmp_path/"x")
    hf.assert_same_tensors(tmp_path/"x", FIXTURES/name)
    a,b=hf.config_of(tmp_path/"x"),hf.config_of(FIXTURES/name)
    d={k:(a.get(k,'-'),b.get(k,'-')) for k in a.keys()|b.keys() if a.get(k,'-')!=b.get(k,'-')}
    if d: print("CONF",name,d)
