import dataclasses
import doctest
import json
import random

import numpy as np
import pytest

from experiments import baseline, linear
from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import bert
from lm.tasks import TASKS
from lm.text.tokenizer import ByteTokenizer
from lm.train import workdir
from lm.train.config import Config
from lm.types import UserError

TOPICS = {
    "sports": ("goal", "match", "team", "coach"),
    "tech": ("chip", "phone", "code", "laser"),
}
FILLER = ("the", "a", "of", "old", "new", "big", "said", "was", "will", "three")
MANY = [f"word{number}" for number in range(40)]
MODEL = bert.Config(vocab_size=300, emb_dim=8, num_layers=1, num_heads=1, max_len=64)


def sentence(rng, *words):
    text = [*words, *rng.choices(FILLER, k=6)]
    rng.shuffle(text)
    return " ".join(text)


def topic_rows(number, seed=0):
    rng = random.Random(seed)
    rows = []
    for _ in range(number):
        label = rng.choice(list(TOPICS))
        text = sentence(rng, *rng.sample(TOPICS[label], 2))
        rows.append({"text": text, "label": label})
    return rows


@pytest.fixture
def make_config(tmp_path):
    """Makes a config whose splits have rows of 80, 40 and 40."""

    def make_config(task, make_rows, **data):
        sizes = {"train": 80, "validation": 40, "test": 40}
        for seed, (split, size) in enumerate(sizes.items()):
            rows = make_rows(size, seed)
            lines = (json.dumps(row, ensure_ascii=False) for row in rows)
            (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
        source = str(tmp_path / "{split}.jsonl")
        config = TASKS[task.pop("name")][0](length=64, **task)
        return Config(MODEL, config, DataConfig((source,), "none", **data))

    return make_config


def first(result):
    return next(iter(result["scores"].values()))


def test_topics_are_told_apart_and_the_scores_are_the_tasks(make_config):
    result = baseline.fit(make_config({"name": "classify"}, topic_rows), "test")
    assert result["name"].startswith("tf-idf of words, logistic regression, C=")
    assert first(result) > 0.95
    assert {"accuracy", "f1_macro", "auc"} < set(result["scores"])
    assert 0 < result["examples"] <= 40 and result["seconds"] > 0


def test_characters_where_words_are_not_spaced(make_config):
    def rows(number, seed):
        rng = random.Random(seed)
        for _ in range(number):
            label = rng.choice(["好", "坏"])
            first, last = (rng.choices("天地人山水火风雨", k=5) for _ in range(2))
            yield {"text": "".join([*first, label, *last]), "label": label}

    result = baseline.fit(make_config({"name": "classify"}, rows), "test")
    assert "characters" in result["name"] and first(result) > 0.9


def test_examples_in_docstrings():
    assert doctest.testmod(linear) == (0, 1)


def several_rows(number, seed):
    rng = random.Random(seed)
    for _ in range(number):
        labels = [label for label in TOPICS if rng.random() < 0.5]
        words = [word for label in labels for word in rng.sample(TOPICS[label], 2)]
        yield {"text": sentence(rng, *words), "label": labels}


def test_several_labels_or_none(make_config):
    config = make_config({"name": "classify", "kind": "several"}, several_rows)
    assert first(baseline.fit(config, "test")) > 0.95


def test_thresholds_are_tuned_where_those_of_the_network_are(make_config):
    config = make_config({"name": "classify", "kind": "several"}, several_rows)
    labels = tuple(TOPICS)
    tuned = dataclasses.replace(config.task, labels=labels, thresholds=(0.9, 0.9))
    result = baseline.fit(dataclasses.replace(config, task=tuned), "test")
    # A linear model of 80 texts is seldom as sure as that.
    assert first(result) > 0.95


def test_a_number(make_config):
    def rows(number, seed):
        rng = random.Random(seed)
        for _ in range(number):
            count = rng.randrange(4)
            yield {"text": sentence(rng, *["good"] * count), "label": count / 2}

    config = make_config({"name": "classify", "kind": "number"}, rows)
    result = baseline.fit(config, "test")
    assert "ridge regression" in result["name"]
    assert first(result) > 0.9


def test_pairs_that_share_words(make_config):
    def rows(number, seed):
        rng = random.Random(seed)
        for _ in range(number):
            a, b = (rng.sample(MANY, 5) for _ in range(2))
            is_same = rng.random() < 0.5
            other = rng.sample(a, 5) if is_same else b
            label = "same" if is_same else "other"
            yield {"text": " ".join(a), "text_b": " ".join(other), "label": label}

    result = baseline.fit(make_config({"name": "pair"}, rows), "test")
    assert first(result) > 0.9


def test_what_is_between_marked_spans(make_config):
    def rows(number, seed):
        rng = random.Random(seed)
        for _ in range(number):
            verbs = rng.sample(["hired", "sued"], 2)
            before = sentence(rng, verbs[1])
            text = f"{before} Ann {verbs[0]} Bob"
            head = [len(before) + 1, len(before) + 4]
            tail = [len(text) - 3, len(text)]
            yield {"text": text, "head": head, "tail": tail, "label": verbs[0]}

    result = baseline.fit(make_config({"name": "relation"}, rows), "test")
    assert first(result) > 0.9


def tag_rows(number, seed):
    """Verbs end in -ed; `bank` is one after `to`; every text has a new word."""
    rng = random.Random(seed)
    for index in range(number):
        new = f"w{seed}x{index}"
        words = ["the", new, new + "ed", rng.choice(["to", "the"]), "bank", "."]
        last = "verb" if words[3] == "to" else "noun"
        tags = ["det", "noun", "verb", "to" if words[3] == "to" else "det", last, "."]
        yield {"text": " ".join(words), "words": words, "tags": tags}


def test_words_are_tagged_by_their_ends_and_neighbours(make_config):
    result = baseline.fit(make_config({"name": "tag"}, tag_rows), "test")
    assert first(result) > 0.95


def test_entities(make_config):
    def rows(number, seed):
        rng = random.Random(seed)
        for _ in range(number):
            words, tags = [], []
            for _ in range(3):
                words += [rng.choice(FILLER), "Mr", rng.choice(["Smith", "Bell"])]
                tags += ["O", "B-PER", "I-PER"]
            yield {"text": " ".join(words), "words": words, "tags": tags}

    result = baseline.fit(make_config({"name": "tag", "scheme": "bio"}, rows), "test")
    assert first(result) == 1


def test_features_of_a_word_are_of_its_own_sentence():
    rng = random.Random(0)
    sentences = [rng.choices(FILLER, k=rng.randrange(1, 6)) for _ in range(20)]
    labels = [np.array([len(word) % 2 for word in s]) for s in sentences]
    windows = linear._Windows(sentences, labels)
    together = windows.features(sentences).toarray()
    alone = np.concatenate([windows.features([s]).toarray() for s in sentences])
    np.testing.assert_array_equal(together, alone)
    assert windows.features([["", "unheard-of"]]).shape == (2, together.shape[1])


def test_large_training_splits_are_thinned(make_config, monkeypatch):
    config = make_config({"name": "tag"}, tag_rows)
    sizes = []
    features = linear._Windows.features
    monkeypatch.setattr(linear, "MOST_WORDS", 60)
    monkeypatch.setattr(
        linear._Windows,
        "features",
        lambda self, s: sizes.append(len(s)) or features(self, s),
    )
    assert first(baseline.fit(config, "test")) > 0.8
    assert sizes[0] == 10  # sentences of 6 words


def rank_rows(number, seed):
    rng = random.Random(seed)
    for index in range(number):
        name = f"{'abcdefgh'[index % 8] * 4}{index // 8}"
        yield {"text": sentence(rng, name, "dog"), "query": f"a {name}"}


@pytest.mark.parametrize("kind, most", [("dual", 40), ("cross", 20)])
def test_texts_are_ranked(make_config, kind, most):
    config = make_config({"name": "rank", "kind": kind, "query_length": 16}, rank_rows)
    result = baseline.fit(config, "test")
    assert result["name"].startswith("cosine of tf-idf of")
    assert first(result) > 0.9

    train, test = (list(rank_rows(n, seed)) for n, seed in ((80, 0), (40, 2)))
    for row in test:
        row["query"] = "?"  # alike to all, so their own text comes last
    task = TASKS["rank"][1](config.task, ByteTokenizer(0))
    (model, *_) = linear.MODELS["rank"](task, linear.Split(train, []))
    assert {p["rank"] for p in model.predict(test)} == {most}


def test_seen_texts_are_left_out(make_config, tmp_path):
    config = make_config({"name": "classify"}, topic_rows)
    before = baseline.fit(config, "test")["examples"]
    row = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write("\n" + json.dumps(row | {"text": row["text"].upper()}))
    assert baseline.fit(config, "test")["examples"] == before
    with pytest.raises(UserError, match="every text of train is in train"):
        baseline.fit(config, "train")


def test_the_best_of_the_candidates_is_taken_and_the_first_of_equals():
    class Task:
        def score(self, examples, predictions):
            return {"accuracy": predictions[0], "loss": -predictions[0]}

    def candidate(name, score):
        return linear.Candidate(name, lambda examples: [score])

    candidates = [candidate("a", 0.1), candidate("b", 0.3), candidate("c", 0.3)]
    assert baseline._best(Task(), candidates, [{}]).name == "b"


def test_bad_rows_are_named_or_left_out(make_config, tmp_path):
    config = make_config({"name": "classify"}, topic_rows)
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write('\n{"text": "who", "label": "weather"}')
    with pytest.raises(UserError, match=r"test.jsonl:41 has the label 'weather'"):
        baseline.fit(config, "test")
    data = dataclasses.replace(config.data, bad_rows="skip")
    result = baseline.fit(dataclasses.replace(config, data=data), "test")
    assert result["examples"] <= 40


def run(*words):
    args, overrides = baseline.parser.parse_known_args(words)
    return baseline.main(args, overrides)


@pytest.fixture
def folder(make_config, tmp_path):
    """Makes a workdir as far as the command looks at it."""
    config = make_config({"name": "classify"}, topic_rows)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(workdir.as_json(config)))
    return folder


def test_the_workdir_gets_the_scores_which_stand_beside_the_models(folder, capsys):
    result = run(f"--workdir={folder}", "--split=test")
    assert json.loads((folder / "baseline-test.json").read_text()) == result
    assert "model" not in capsys.readouterr().out
    report = {
        "examples": result["examples"],
        "scores": [{"name": "accuracy", "value": 0.125}],
    }
    (folder / "report-test.json").write_text(json.dumps(report))
    run(f"--workdir={folder}", "--split=test")
    out, err = capsys.readouterr()
    assert "model" in out and "0.1250" in out and "do not compare" not in err
    report["examples"] += 1
    (folder / "report-test.json").write_text(json.dumps(report))
    run(f"--workdir={folder}", "--split=test")
    assert "do not compare" in capsys.readouterr().err
    (folder / "report-test.json").write_text("{")
    with pytest.raises(UserError, match="report-test.json is not JSON"):
        run(f"--workdir={folder}", "--split=test")
    names = {"config.json", "report-test.json", "baseline-test.json"}
    assert {path.name for path in folder.iterdir()} == names


def test_a_config_needs_no_workdir(make_config, tmp_path, monkeypatch, capsys):
    config = make_config({"name": "classify"}, topic_rows)
    monkeypatch.setattr(
        baseline.config_lib, "load", lambda path, overrides: to_config_dict(config)
    )
    before = set(tmp_path.iterdir())
    run("--config=any.py")
    assert set(tmp_path.iterdir()) == before
    assert "validation also chooses" in capsys.readouterr().err
    run("--config=any.py", f"--output={tmp_path}/scores.json")
    assert "accuracy" in json.loads((tmp_path / "scores.json").read_text())["scores"]


def test_mistakes_are_one_line(folder, make_config, tmp_path):
    for words, message in (
        ([f"--workdir={tmp_path}/none"], "is .*none a workdir of lm.train"),
        (["--workdir="], "workdir of lm.train"),
        (["--config=none.py"], "no config file 'none.py'"),
        ([f"--workdir={folder}", "--config.seed=1"], "needs --config"),
        ([f"--workdir={folder}", "--split=tset"], "tset.jsonl"),
        ([f"--workdir={folder}", f"--output={tmp_path}/no/a.json"], "no folder"),
    ):
        with pytest.raises(UserError, match=message):
            run(*words)
    config = make_config({"name": "causal_lm"}, topic_rows)
    with pytest.raises(UserError, match="causal_lm has no baseline; .*classify, pair"):
        baseline.fit(config, "test")


def test_one_of_workdir_and_config(capsys):
    for words in ([], ["--workdir=a", "--config=b"]):
        with pytest.raises(SystemExit, match="2"):
            run(*words)
        assert capsys.readouterr().err.count("\n") == 1
