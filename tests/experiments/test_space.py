import doctest
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections.config_dict import ConfigDict

from experiments.search import space as space_lib
from experiments.search import text as text_lib
from experiments.search.space import (
    Distribution,
    Table,
    as_flags,
    chain,
    choice,
    integers,
    log,
    product,
    rows,
    short,
    split_seed,
    typed,
    uniform,
    union,
    zipped,
)
from experiments.search.text import as_text, parse
from lm import cli
from lm.config import load, override
from lm.types import UserError

CONFIG = "configs/bbc.py"
VALUES = load(CONFIG).to_dict()
PARSER = cli.make_parser("")

KEYS = ("optim.b1", "seed", "model.num_layers", "optim.freeze", "init_from")
finite = st.floats(allow_nan=False, allow_infinity=False)
items = st.one_of(st.text(), st.integers(), finite, st.booleans())
values = st.one_of(items, st.lists(items, max_size=3).map(tuple))
# What makes a text mean something else, more often than chance would.
awkward = st.text(st.sampled_from("a1.,;&=()[]'\"\\ -")) | st.sampled_from(
    ["0..2", "log(1,2)", "(a|b)$", "don't,can't", "'x'", "[^(]*", "", " ", "true"]
)


@st.composite
def tables(draw, keys=KEYS, values=values):
    """Spaces of one table, whose rows are different."""
    names = draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3, unique=True))
    number = draw(st.integers(1, 4))
    # Words are equal where values are not: 1 and "1".
    column = st.lists(values, min_size=number, max_size=number, unique_by=str)
    return zipped(*(choice(name, *draw(column)) for name in names))


@pytest.fixture
def config():
    return load(CONFIG)


def refused(function, *args, **options):
    """Returns the message, which is one line."""
    with pytest.raises(UserError) as error:
        function(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_docstrings_are_true():
    for module in (space_lib, text_lib):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed


def test_neither_jax_nor_optuna_is_loaded():
    """A command that refuses a text answers at once."""
    code = "import sys, experiments.search.text as t; print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"jax", "flax", "optuna", "numpy"} & set(out.stdout.split())


# The algebra.


@given(tables(KEYS[:2]), tables(KEYS[2:4]), tables(KEYS[4:]))
def test_a_product_has_every_row_with_every_other(a, b, c):
    found = product(a, b, c)
    assert found.size == a.size * b.size * c.size == len(rows(found))
    assert rows(found) == [
        {**x, **y, **z} for x in rows(a) for y in rows(b) for z in rows(c)
    ]
    assert product(product(a, b), c) == product(a, product(b, c)) == found
    assert product(a) == product(a, product()) == a


@given(st.lists(st.tuples(items, items), min_size=1))
def test_zipped_rows_are_in_order(pairs):
    a, b = zip(*pairs)
    found = zipped(choice("a", *a), choice("b", *b))
    assert [(row["a"], row["b"]) for row in rows(found)] == pairs


@given(tables(), tables())
def test_a_union_has_equal_rows_once_and_a_chain_all_of_them(a, b):
    assert rows(union(a, a)) == rows(a)
    assert rows(union(union(a, b), b)) == rows(union(a, b))
    assert rows(chain(a, b)) == rows(a) + rows(b)
    assert all(row in rows(union(a, b)) for row in rows(chain(a, b)))


def test_a_union_tells_types_apart():
    assert len(rows(union(choice("a", 1, True), choice("a", 1.0, 1)))) == 3


def test_rows_of_a_union_may_set_different_keys():
    adam = product(choice("optim.name", "adamw"), choice("optim.b2", 0.9, 0.99))
    found = union(adam, choice("optim.name", "sgd"))
    assert found.keys == ("optim.name", "optim.b2")
    assert rows(found)[-1] == {"optim.name": "sgd"}
    assert "get_sweep" in refused(as_text, found)


@given(st.sampled_from([uniform, log]), st.data())
def test_points_are_evenly_spaced_on_their_scale(function, data):
    number = st.floats(1e-9, 1e9)
    low = data.draw(number)
    high = low * data.draw(st.floats(1.5, 1e6))
    points = data.draw(st.integers(2, 30))
    found = [row["a"] for row in rows(function("a", low, high, points))]
    assert len(found) == points and (found[0], found[-1]) == (low, high)
    scaled = [math.log(x) if function is log else x for x in found]
    gaps = [b - a for a, b in zip(scaled, scaled[1:])]
    step = (scaled[-1] - scaled[0]) / (points - 1)
    assert gaps == pytest.approx([step] * len(gaps), rel=1e-6, abs=1e-9 * abs(high))


def test_points_of_whole_numbers_are_whole():
    assert [row["a"] for row in rows(integers("a", 1, 8, 4))] == [1, 3, 6, 8]
    assert [r["a"] for r in rows(integers("a", 1, 256, 5, log=True))] == [
        *(1, 4, 16, 64, 256)
    ]
    assert "no 5 different points" in refused(integers, "a", 1, 3, 5)


def test_a_sampler_finds_what_it_needs():
    found = product(choice("a", 1, 2), log("b", 1e-5, 1), integers("c", 1, 9))
    table, b, c = found.factors
    assert isinstance(table, Table) and table.rows == ({"a": 1}, {"a": 2})
    assert isinstance(b, Distribution) and isinstance(c, Distribution)
    assert (b.key, b.low, b.high, b.is_log, b.is_integer) == ("b", 1e-5, 1, True, False)
    assert (c.key, c.low, c.high, c.is_log, c.is_integer) == ("c", 1, 9, False, True)
    assert found.size == math.inf


def test_what_makes_no_space_is_refused():
    two, three = choice("a", 1, 2), choice("b", 1, 2, 3)
    message = refused(zipped, two, three)
    assert "a has 2 rows" in message and "b has 3" in message
    for combine in (zipped, union, chain):
        message = refused(combine, two, log("b", 1e-5, 1))
        assert "b=log(1e-05,1) has no end; b=log(1e-05,1,5)" in message
    for combine in (product, zipped):
        assert "a is in the sweep twice" in refused(combine, two, choice("a", 3, 4))
    assert "a has no values" in refused(choice, "a")
    assert "lower one first" in refused(uniform, "a", 1, 1)
    assert "lower one first" in refused(uniform, "a", 0, math.inf)
    assert "lower one first" in refused(uniform, "a", math.nan, 1)
    assert "must have numbers" in refused(uniform, "a", "x", 1)
    assert "above 0" in refused(log, "a", 0, 1)
    assert "write int" in refused(integers, "a", 0, 9, log=True)
    assert "whole numbers" in refused(integers, "a", 0.5, 9)
    assert "2 to 10,000 points" in refused(uniform, "a", 0, 1, 1)


def test_rows_beyond_the_limit_are_refused_before_they_are_made():
    wide = product(*(choice(f"k{i}", *range(1000)) for i in range(9)))
    assert "more than 10,000" in refused(rows, wide)
    assert "6 rows, more than 5" in refused(
        rows, product(choice("a", 1, 2), choice("b", 1, 2, 3)), 5
    )
    assert len(rows(choice("a", *range(5)), 5)) == 5


def test_the_seed_is_taken_apart():
    others = product(choice("optim.b1", 0.8, 0.9), log("optim.eps", 1e-8, 1e-6))
    assert split_seed(product(others, choice("seed", 3, 1))) == (others, [3, 1])
    assert split_seed(others) == (others, [])
    tied = zipped(choice("seed", 0, 1), choice("optim.b1", 0.8, 0.9))
    assert "seed=0..2" in refused(split_seed, tied)
    assert "has no end" in refused(split_seed, integers("seed", 0, 9))


# The text form.


@given(
    tables(KEYS[:2], values | awkward),
    tables(KEYS[2:], values | awkward),
    st.sampled_from([uniform, log, integers]),
    st.tuples(st.integers(1, 99), st.integers(100, 999)),
)
def test_a_space_is_that_of_its_text(a, b, function, ends):
    space = product(a, function("optim.eps", *ends), b)
    found = parse(as_text(space))
    assert parse(as_text(found)) == found
    assert found.factors[1] == space.factors[1]
    for old, new in zip(space.factors[::2], found.factors[::2]):
        assert [*map(as_flags, old.rows)] == [*map(as_flags, new.rows)]


@given(st.text() | awkward | st.tuples(awkward, awkward).map("=".join))
def test_a_text_is_a_space_or_an_error_of_the_users(text):
    try:
        assert parse(text).keys
    except UserError as error:
        assert str(error)


def test_text_is_split_outside_of_quotes_and_brackets():
    (table,) = parse(
        r"""a=(x,y),[p,q],'m,n',"it's",don't,(kernel|bias)$,\(b,1e-3,true,''"""
    ).factors
    assert [row["a"] for row in table.rows] == [
        *("(x,y)", "[p,q]", "m,n", "it's", "don't", "(kernel|bias)$", r"\(b"),
        *("1e-3", "true", ""),
    ]
    (table,) = parse(r"""a='\d, it\'s',"\\.;\"",kernel\d""").factors
    assert [row["a"] for row in table.rows] == [r"\d, it's", r'\.;"', r"kernel\d"]
    (table,) = parse("a=0..2,7,uniform(0,1,3)").factors
    assert [str(row["a"]) for row in table.rows] == ["0", "1", "2", "7", "0.0"] + [
        *("0.5", "1.0")
    ]
    assert parse("a = -1..0 ;\n b=x & c=y") == parse("a=-1..0;b=x&c=y")
    assert rows(parse("a=x=1,y"))[0] == {"a": "x=1"}
    assert rows(parse("a=x\ny")) == [{"a": "x\ny"}]


@pytest.mark.parametrize("mark", ["'", '"'])
def test_values_with_half_a_pair_of_quotes_stay_apart(mark):
    space = zipped(choice("a", f"{mark}b", f"c{mark}"), choice("d", f"{mark};", "&"))
    assert parse(as_text(space)) == space


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a part of the sweep is empty"),
        ("a=1;", "a part of the sweep is empty"),
        ("a=1; b", "'b' is not key=values"),
        ("=1,2", "'=1,2' is not key=values"),
        ("a=", "a has an empty value"),
        ("a=1,,2", "a has an empty value"),
        ("a=lgo(1,2)", "a=lgo(1,2): no function 'lgo'"),
        ("a=lgo(1,2)", "did you mean 'log'?"),
        ("a=log()", "a=log() must be log(low,high) or"),
        ("a=log(1,2,3,4)", "must be log(low,high) or log(low,high,points)"),
        ("a=log(1,x)", "a=log(1,x): 'x' is no number"),
        ("a=log(1,2,2.5)", "2 to 10,000 points, not 2.5"),
        ("a=log(2,1)", "a=log(2,1) must have two numbers, the lower one first"),
        ("a=log(0,1)", "a=log(0,1) must begin above 0"),
        ("a=log(1,1e999)", "the lower one first"),
        (f"a=log(1,{10**400})", "must have numbers"),
        ("a=int(1.5,3)", "a=int(1.5,3) must have whole numbers"),
        ("a=log(1,2),3", "a=log(1,2) has no end"),
        ("a=log(1,2) & b=1,2", "a=log(1,2) has no end"),
        ("a=1,2 & b=1", "a has 2 rows and b has 1"),
        ("a=1; a=2", "a is in the sweep twice"),
        ("a=1 & a=2", "a is in the sweep twice"),
        ("seed=0,0", "seed=0,0 has the same row twice"),
        ("a=2..1", "a=2..1 must go up"),
        ("a=0..1000000000", "at most 10,000"),
        ("a=(1,2", "a bracket"),
        ("a=1),(2", "a bracket"),
    ],
)
def test_what_is_no_text_is_refused(text, says):
    assert says in refused(parse, text)


# By the config.

# A key of each type, and values that it takes.
TYPES = {
    "seed": st.integers(0, 2**31 - 1),
    "optim.b1": st.floats(0, 1, exclude_max=True),
    "optim.weight_decay": st.integers(0, 9) | st.floats(0, 1e300),
    "model.use_bias": st.booleans(),
    "init_from": st.text(),
    "optim.freeze": st.lists(st.text(), max_size=3),
    "data.weights": st.lists(st.floats(0.5, 9) | st.integers(1, 9), max_size=1),
}


@settings(max_examples=50)
@given(st.data())
def test_flags_give_the_same_value_back(data):
    """lm.train has what the sweep says it has."""
    key = data.draw(st.sampled_from(sorted(TYPES)))
    value = data.draw(TYPES[key])
    config = ConfigDict(VALUES)
    before = at(config, key)
    (row,) = rows(typed(choice(key, value), config))
    assert row[key] == (tuple(value) if isinstance(value, list) else value)
    assert type(row[key]) is type(before)
    (word,) = as_flags(row)
    assert cli.parse(PARSER, [word], "--config.")[1] == [word]
    override(config, word)
    assert repr(at(config, key)) == repr(row[key])


@settings(max_examples=50)
@given(st.data())
def test_typed_values_are_those_of_overrides(data):
    """A text means what the same text means to lm.train."""
    key, *texts = data.draw(
        st.sampled_from(
            [
                ("optim.weight_decay", "1", "1e-3", ".25", "0.5"),
                ("seed", "0", "7", "1_000"),
                ("model.use_bias", "true", "False", "TRUE"),
                ("optim.freeze", "embed", "(a|b)/kernel$", "()", "('a','b')", "('a',)"),
                ("init_from", "runs/a", "1", "1e-3", "true", "(1, 2)"),
            ]
        )
    )
    words = data.draw(st.lists(st.sampled_from(texts), min_size=1, unique=True))
    found = rows(typed(parse(f"{key}={','.join(words)}"), ConfigDict(VALUES)))
    for word, row in zip(words, found, strict=True):
        config = ConfigDict(VALUES)
        override(config, f"--config.{key}={word}")
        assert repr(row) == repr({key: at(config, key)})


def at(config, key):
    for name in key.split("."):
        config = config[name]
    return config


def test_numpy_values_are_numbers(config):
    found = typed(choice("optim.b1", *np.linspace(0.5, 0.75, 2)), config)
    assert repr(rows(found)) == "[{'optim.b1': 0.5}, {'optim.b1': 0.75}]"


def test_typing_leaves_the_config_and_distributions_alone(config):
    space = parse("optim.learning_rate=log(1e-5,1e-3); seed=int(0,9); batch_size=8")
    found = typed(space, config)
    assert config.to_dict() == VALUES
    assert found.factors[:2] == space.factors[:2]
    assert found.factors[2] == Table(({"batch_size": 8},))
    assert typed(found, config) == found
    assert typed(product(), config) == product()
    assert split_seed(typed(parse("seed=0..2"), config)) == (product(), [0, 1, 2])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optim.lerning_rate=1,2", "optim.lerning_rate; did you mean 'learning_rate'?"),
        ("optim.lerning_rate=log(1,2)", "did you mean 'learning_rate'?"),
        ("optim=1", "config.optim has fields of its own"),
        ("optim.b1=0.5,x", "config.optim.b1 must be of type float, not 'x'"),
        ("optim.b1=uniform(0.5,2)", "with b1=2: optim.b1 must be"),
        ("seed=uniform(0,9)", "seed=uniform(0,9): config.seed must be of type int"),
        ("model.use_bias=int(0,1)", "must be of type bool"),
        ("init_from=uniform(0,1)", "init_from must be of type str"),
        ("data.weights=uniform(0,1)", "data.weights is not a number"),
        ("optim.freeze=1", "with freeze=(1,): config.optim.freeze[0] must be of type"),
        ("optim.name=adamw,adma", "with name=adma: unknown optim.name 'adma'"),
        (
            "batch_size=8,12; grad_accum_steps=1,4,8",
            "with batch_size=12 grad_accum_steps=8: batch_size 12 does not divide",
        ),
        (
            "task.length=128,512; optim.eps=log(1e-8,1e-6)",
            "with length=512 eps=1e-08: task.length 512 exceeds model.max_len 256",
        ),
    ],
)
def test_what_does_not_fit_the_config_is_refused(config, text, says):
    assert says in refused(typed, parse(text), config)


def test_what_only_goes_together_is_taken_together(config):
    """512 does not fit the config's own max_len."""
    found = typed(parse("task.length=256,512 & model.max_len=256,512"), config)
    assert len(rows(found)) == 2


def test_models_can_be_tried_with_fields_of_their_own(config):
    names = choice("model.name", "bert", "textcnn", "birnn")
    assert (
        len(rows(typed(product(names, choice("model.emb_dim", 32, 64)), config))) == 6
    )
    widths = zipped(
        choice("model.widths", (2,), (3, 4)), choice("model.name", *2 * ["textcnn"])
    )
    assert rows(typed(widths, config)) == [
        {"model.widths": (2,), "model.name": "textcnn"},
        {"model.widths": (3, 4), "model.name": "textcnn"},
    ]
    said = refused(typed, choice("model.name", "textcnn", "text_cnn"), config)
    assert "did you mean 'textcnn'" in said
    assert config.model.name == "bert"


def test_a_string_is_not_made_of_what_is_none(config):
    for value in (None, 5, ("a",)):
        assert "type str" in refused(typed, choice("init_from", value), config)


def test_of_too_many_rows_each_value_is_tried_in_one(config, monkeypatch):
    monkeypatch.setattr(space_lib, "MOST", 3)
    good = "optim.b1=0.5,0.6,0.7; optim.weight_decay=0,1; seed="
    typed(parse(good + "0,1"), config)
    bad = good.replace("0.7", "1.7") + "0,1"
    assert "with b1=1.7 weight_decay=0 seed=0" in refused(typed, parse(bad), config)
    bad = good + "0,-1"
    assert "with b1=0.6 weight_decay=1 seed=-1" in refused(typed, parse(bad), config)


def test_a_label_is_short():
    assert short({"a.b.rate": 1 / 3, "seed": 1_000_000}) == "rate=0.333333 seed=1000000"
    assert short({"a.x": 1, "b.x": True}) == "a.x=1 b.x=True"
    assert short({"seed": 0, "a.seed": 1, "f": ("a", "b")}) == (
        "seed=0 a.seed=1 f=('a', 'b')"
    )
    assert short({}) == ""
