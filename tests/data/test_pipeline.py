"""From files to batches: what comes does not depend on how it is asked for."""

import dataclasses
import itertools
import json
from collections import Counter

import numpy as np
import pytest

from lm.data.pipeline import DataConfig, build_pipeline, one_pass
from lm.tasks import causal_lm, masked_lm
from lm.text import tokenizers
from lm.types import UserError

BYTES = tokenizers.train("bytes", [])
DEFAULTS = {"split": "train", "batch_size": 8, "seed": 0, "train": True}
WORDS = ["in", "the", "beginning", "was", "a", "word", "and", "light"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sources of 60 and 20 texts, in splits of which `short` has one."""
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for name, size in (("a", 60), ("b", 20)):
        texts = [
            f"{name}{number} {' '.join(rng.choice(WORDS, rng.integers(1, 9)))}"
            for number in range(size)
        ]
        write(folder / f"{name}-train.jsonl", texts)
        write(folder / f"{name}-validation.jsonl", texts[:7])
        write(folder / f"{name}-short.jsonl", texts[:1])
        write(folder / f"{name}-blank.jsonl", [" "])
    return folder


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def read(path):
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


@pytest.fixture
def build(folder):
    """Builds a pipeline; what is not named has a default."""

    def build(sources="a", task=None, tokenizer=BYTES, data=None, **options):
        specs = tuple(str(folder / f"{name}-{{split}}.jsonl") for name in sources)
        config = DataConfig(specs, tokenizer="", data_dir=str(folder))
        config = dataclasses.replace(config, **data or {})
        return build_pipeline(task or causal(), tokenizer, config, **DEFAULTS | options)

    return build


def causal(**options):
    return causal_lm.CausalLM(causal_lm.Config(length=64, **options), BYTES)


def batches_of(pipeline, first=0, last=None):
    last = pipeline.num_batches if last is None else last
    return [pipeline.batch(number) for number in range(first, last)]


def join(batches):
    """Puts the rows of batches into one."""
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for name, array in batch.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def texts_in(batch):
    """Returns the documents in rows of whole documents."""
    return Counter(
        BYTES.decode(inputs[segments == segment])
        for inputs, segments in zip(batch["inputs"], batch["segment_ids"])
        for segment in range(1, segments.max() + 1)
    )


TASKS = {
    "concat": causal(),
    "fit": causal(packing="fit", prefix_lm=True),
    "bucket": causal(packing="bucket"),
    "masked": masked_lm.MaskedLM(masked_lm.Config(length=64), BYTES),
}


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("train", [True, False])
def test_hosts_share_the_batch_of_one(build, name, train, hosts):
    options = {"sources": "ab", "task": TASKS[name], "train": train}
    alone = build(**options)
    parts = [build(**options, host=range(index, 8, hosts)) for index in range(hosts)]
    assert {part.num_batches for part in parts} == {alone.num_batches}
    for number in range(alone.num_batches):
        shares = [part.batch(number) for part in parts]
        assert {len(share["inputs"]) for share in shares} == {8 // hosts}
        order = np.argsort(
            np.concatenate([np.arange(i, 8, hosts) for i in range(hosts)])
        )
        joined = {key: value[order] for key, value in join(shares).items()}
        assert_same(joined, alone.batch(number))


@pytest.mark.parametrize("name", ["concat", "fit", "masked"])
@pytest.mark.parametrize("weights", [(), (2, 1)])
def test_rows_depend_neither_on_the_batch_nor_on_the_start(build, name, weights):
    options = {"sources": "ab", "task": TASKS[name], "data": {"weights": weights}}
    rows = join(batches_of(build(**options), last=12))
    other = build(**options, batch_size=5, start_row=31)
    expected = {name: array[31:46] for name, array in rows.items()}
    assert_same(join(batches_of(other, last=3)), expected)


def test_bucketed_batches_depend_on_their_number_alone(build):
    options = {"sources": "ab", "task": TASKS["bucket"]}
    pipeline = build(**options)
    for number, batch in enumerate(batches_of(build(**options, start_row=80), last=5)):
        assert_same(batch, pipeline.batch(10 + number))
    with pytest.raises(UserError, match="row 81 is not the first of a batch of 8"):
        build(**options, start_row=81)


def test_every_text_is_in_one_row_of_an_epoch(build, folder):
    pipeline = build("ab", causal(packing="fit"), batch_size=1)
    texts = [read(folder / f"{name}-train.jsonl") for name in "ab"]
    for epoch in range(2):
        first = epoch * pipeline.num_rows
        batches = batches_of(pipeline, first, first + pipeline.num_rows)
        assert texts_in(join(batches)) == Counter(itertools.chain(*texts))


def test_a_mixture_has_its_shares_and_every_text_of_each_source(build, folder):
    whole = causal(packing="fit")
    pipeline = build("ab", whole, batch_size=8, data={"weights": (3, 1)})
    found = texts_in(join(batches_of(pipeline, last=1024 // 8)))
    for name, share, rows in zip("ab", (768, 256), pipeline.layouts):
        texts = read(folder / f"{name}-train.jsonl")
        epochs = share // rows.num_rows
        assert all(epochs <= found[text] <= epochs + 1 for text in texts)


def test_epochs_differ_in_order_and_seeds_in_epochs(build):
    def order(seed=0, epoch=0, **data):
        pipeline = build(task=causal(packing="fit"), batch_size=1, seed=seed, data=data)
        first = epoch * pipeline.num_rows
        batches = batches_of(pipeline, first, first + pipeline.num_rows)
        return [tuple(batch["inputs"][0].tolist()) for batch in batches]

    assert order() == order()
    assert order() != order(epoch=1)
    assert sorted(order()) == sorted(order(epoch=1))
    assert order() != order(seed=1)
    assert order(shuffle=False) == order(epoch=1, seed=1, shuffle=False)


def test_unshuffled_rows_keep_the_texts_order(build, folder):
    batches = batches_of(build(data={"shuffle": False}, batch_size=1))
    inputs = join(batches)["inputs"].ravel()
    text = "".join(read(folder / "a-train.jsonl"))
    assert BYTES.decode(inputs) == text


def test_evaluation_takes_every_row_once_and_fills_up_the_last_batch(build, folder):
    pipeline = build("ab", train=False, split="validation", batch_size=5)
    rows = join(batches_of(pipeline))
    real = rows["example_mask"] > 0
    assert len(real) == 5 * pipeline.num_batches
    assert pipeline.num_rows == real.sum()
    assert 0 < (~real).sum() < 5
    assert not rows["loss_mask"][~real].any()
    assert not rows["num_bytes"][~real].any()
    texts = [read(folder / f"{name}-validation.jsonl") for name in "ab"]
    assert texts_in(rows) == Counter(itertools.chain(*texts))


@pytest.mark.parametrize("stride", [0, 1, 5])
def test_evaluation_scores_every_token_once_whatever_the_stride(build, folder, stride):
    config = causal_lm.Config(length=16, stride=stride)
    task = causal_lm.CausalLM(config, BYTES)
    rows = join(batches_of(build(task=task, train=False, split="validation")))
    scored = Counter(rows["targets"][rows["loss_mask"] > 0].tolist())
    texts = read(folder / "a-validation.jsonl")
    ends = {BYTES.eos_id: len(texts)}
    assert scored == Counter(BYTES.encode("".join(texts)).tolist()) + Counter(ends)


def test_a_batch_of_buckets_has_one_capacity(build):
    pipeline = build("ab", TASKS["bucket"])
    widths = set()
    for batch in batches_of(pipeline, last=3 * pipeline.num_batches):
        width = batch["inputs"].shape[1]
        widths.add(width)
        longest = (batch["segment_ids"] > 0).sum(axis=1)
        assert ((width // 2 < longest) | (width == 16)).all()
        assert (longest <= width).all()
    assert widths == {16, 32, 64}


@pytest.mark.parametrize("train", [True, False])
def test_iterating_gives_the_batches_by_number(build, train):
    pipeline = build("ab", TASKS["bucket"], train=train, start_row=8, batch_size=4)
    length = pipeline.num_batches * (2 if train else 1)
    found = list(itertools.islice(pipeline, length if train else None))
    assert len(found) == length
    for number, batch in enumerate(found):
        assert_same(batch, pipeline.batch(number))


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyError(3)])
def test_an_error_in_the_features_is_raised_as_itself(build, error):
    pipeline = build()

    class Broken(causal_lm.CausalLM):
        def features(self, pieces, capacity, rng):
            calls.append(1)
            if len(calls) > 30:
                raise error
            return super().features(pieces, capacity, rng)

    calls = []
    task = Broken(pipeline.task.config, BYTES)
    batches = iter(dataclasses.replace(pipeline, task=task))
    with pytest.raises(type(error)) as raised:
        list(itertools.islice(batches, 10))
    assert raised.value is error


def test_the_fingerprint_is_of_what_decides_the_rows(build, folder, tmp_path):
    def fingerprint(*args, **options):
        return build(*args, **options).fingerprint

    same = fingerprint()
    assert same == fingerprint(batch_size=4, host=range(2), start_row=3)
    assert same == fingerprint(data={"cache_dir": str(tmp_path), "prefetch": 1})
    # Written anew, but with the same texts in it.
    write(folder / "a-train.jsonl", read(folder / "a-train.jsonl"))
    assert same == fingerprint()
    changed = [
        fingerprint("ab"),
        fingerprint("ba"),
        fingerprint("ab", data={"weights": (1, 1)}),
        fingerprint("ab", data={"weights": (1, 2)}),
        fingerprint(seed=1),
        fingerprint(split="validation", batch_size=1),
        fingerprint(data={"shuffle": False}),
        fingerprint(tokenizer=tokenizers.train("bytes", [], num_sentinels=1)),
    ]
    texts = read(folder / "a-train.jsonl")
    write(folder / "a-train.jsonl", [*texts[:-1], texts[-1] + "!"])
    changed.append(fingerprint())
    write(folder / "a-train.jsonl", texts)
    assert len({same, *changed}) == 1 + len(changed)
    assert same == fingerprint()


def test_texts_are_encoded_anew_only_if_what_makes_their_tokens_changes(
    build, tmp_path
):
    class Counting(causal_lm.CausalLM):
        def encode(self, examples):
            calls.append(len(examples))
            return super().encode(examples)

    def num_encoded(sources, length=64, tokenizer=BYTES, **options):
        calls.clear()
        task = Counting(causal_lm.Config(length=length), tokenizer)
        data = {"cache_dir": str(tmp_path)}
        build(sources, task, tokenizer, data, batch_size=1, **options)
        return sum(calls)

    calls = []
    assert num_encoded("a") == 60
    assert num_encoded("a", length=32, seed=5, train=False) == 0
    assert num_encoded("ab") == 20
    assert num_encoded("a", split="validation") == 7
    sentinels = tokenizers.train("bytes", [], num_sentinels=1)
    assert num_encoded("a", tokenizer=sentinels) == 60


def test_splits_of_one_file_are_kept_apart(build, tmp_path):
    write(tmp_path / "all.jsonl", map(str, range(200)))
    data = {"sources": (str(tmp_path / "all.jsonl"),)}
    texts = Counter()
    for split in ("train", "validation", "test"):
        pipeline = build(data=data, split=split, train=False)
        texts += texts_in(join(batches_of(pipeline)))
    assert texts == Counter(map(str, range(200)))


@pytest.mark.parametrize("name", TASKS)
def test_one_pass_of_documents_is_an_evaluation_of_their_texts(build, folder, name):
    texts = read(folder / "a-train.jsonl")
    documents = TASKS[name].encode([{"text": text} for text in texts])
    stored = build(task=TASKS[name], train=False)
    passed = one_pass(TASKS[name], documents, 8)
    assert passed.num_rows == stored.num_rows
    for number in range(stored.num_batches):
        expected = stored.batch(number)
        if name == "masked":  # other seeds, other masks
            expected = dict.fromkeys(expected)
        assert passed.batch(number).keys() == expected.keys()
        if name != "masked":
            assert_same(passed.batch(number), expected)


def test_a_pipeline_tells_which_document_is_in_which_row(folder):
    texts = read(folder / "a-train.jsonl")
    task = TASKS["bucket"]
    documents = task.encode([{"text": text} for text in texts])
    parts = [one_pass(task, documents, 8, rows) for rows in (range(4), range(4, 8))]
    found = []
    for number in range(parts[0].num_batches):
        batch = join([part.batch(number) for part in parts])
        rows = parts[1].documents(number)
        assert len(rows) == batch["example_mask"].sum()
        for row, pieces in enumerate(rows):
            for segment, piece in enumerate(pieces, 1):
                inputs = batch["inputs"][row][batch["segment_ids"][row] == segment]
                assert BYTES.decode(inputs) == texts[piece.doc]
                found.append(piece.doc)
    assert sorted(found) == list(range(len(texts)))


def test_bad_rows_stop_or_are_skipped_and_counted_once(build, tmp_path, capfd):
    class Picky(causal_lm.CausalLM):
        def encode(self, examples):
            return [
                UserError(f"{example.where} is short")
                if len(example["text"]) < 2
                else c
                for example, c in zip(examples, super().encode(examples))
            ]

    path = tmp_path / "a.jsonl"
    write(path, ["long", "b", "long enough"])
    path.write_text("{\n" + path.read_text())
    task = Picky(causal_lm.Config(length=64), BYTES)
    options = {"task": task, "train": False, "split": "all"}

    def build_with(bad_rows):
        data = {"sources": (str(path),), "bad_rows": bad_rows}
        return build(data=data | {"cache_dir": str(tmp_path)}, **options)

    pipeline = build_with("skip")
    assert pipeline.corpora[0].lengths()["tokens"].size == 2
    said = capfd.readouterr().err.splitlines()[-1]
    first = f"skipped 2 bad rows of {path} all; the first: {path}:1 is broken JSON"
    assert said.startswith(first)
    # The cache of the one is not the other's.
    with pytest.raises(UserError, match="a.jsonl:1 is broken JSON"):
        build_with("stop")
    path.write_text(path.read_text().partition("\n")[2])
    with pytest.raises(UserError, match="a.jsonl:2 is short"):
        build_with("stop")
    write(path, ["a", "b"])
    capfd.readouterr()
    with pytest.raises(UserError, match="has no text"):
        build_with("skip")
    assert capfd.readouterr().err == (
        f"skipped 2 bad rows of {path} all; the first: {path}:1 is short\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"split": "short"}, "short makes 1 rows, fewer than batch_size 8; lower"),
        ({"split": "blank", "train": False}, "blank has no text; give more"),
        ({"data": {"cache_dir": "gs://cache"}}, "cannot be kept in gs://cache; set"),
        ({"data": {"weights": (1,)}, "sources": "ab"}, "1 numbers for 2 data.sources"),
        ({"data": {"weights": (0,)}}, "data.weights must all be above 0; leave the"),
        ({"data": {"bad_rows": "pass"}}, "unknown data.bad_rows 'pass'"),
        ({"data": {"prefetch": 0}}, "data.prefetch must be at least 1"),
        ({"data": {"num_workers": 0}}, "data.num_workers must be at least 1"),
        ({"sources": ""}, "data.sources names no text; set it, or"),
    ],
)
def test_mistakes_are_one_line_with_the_cure(build, options, message):
    with pytest.raises(UserError, match=message) as raised:
        build(**options)
    assert len(str(raised.value).splitlines()) == 1
