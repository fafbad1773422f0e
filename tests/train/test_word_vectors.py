"""Token tables that begin with vectors of words, and vectors of workdirs."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest
import tokenizers as hf
from tokenizers import models, pre_tokenizers

from lm import tree
from lm import vectors as vectors_lib
from lm.text import tokenizers
from lm.train import loop
from lm.train import workdir as workdir_lib
from lm.train.checkpoint import Checkpoints
from lm.train.word_vectors import TABLE, make_table, open_vectors, token_names
from lm.types import UserError
from lm.vectors import Vectors

TEXTS = ["the cat sat on the mat with the tiger and the naïve Paris cat"] * 20


def words_tokenizer(folder, words):
    """Writes a foreign file of whole words."""
    tokens = ["<pad>", "<unk>", *words]
    vocab = {word: id for id, word in enumerate(tokens)}
    tokenizer = hf.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "<unk>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizers.load(folder)


def vectors_of(words, size=4, seed=0):
    rng = np.random.default_rng(seed)
    return Vectors(words, rng.normal(size=(len(words), size)).astype(np.float32))


def make(kind, tmp_path):
    if kind == "words":
        return words_tokenizer(tmp_path / "words", ["the", "Cat", "tiger", "Paris"])
    sizes = {"bpe": 290, "wordpiece": 40, "byte_bpe": 290}
    return tokenizers.train(kind, TEXTS, sizes[kind])


@pytest.mark.parametrize("kind", ["words", "bpe", "wordpiece", "byte_bpe"])
def test_a_token_takes_the_vector_of_its_word(kind, tmp_path):
    tokenizer = make(kind, tmp_path)
    words = ["the", "cat", "at", "tiger", "paris", "s", "nobody"]
    vectors = vectors_of(words)
    V = tokenizer.vocab_size + 3
    table, found = make_table(vectors, tokenizer, (V, 4), seed=0)
    assert table.shape == (V, 4) and table.dtype == np.float32
    taken = set()
    for id, piece in enumerate(tokenizer.pieces):
        text = piece.decode(errors="replace")
        if kind in ("words", "wordpiece"):
            begins = not tokenizer.token(id).startswith("##")
        else:
            begins = text.startswith(" ")
        text = text.strip()
        rows = [n for n, word in enumerate(words) if word == text.lower()]
        if begins and rows:
            np.testing.assert_array_equal(table[id], vectors.table[rows[0]])
            taken.add(id)
    assert len(taken) == found >= 2
    # Nothing else has a vector, and it is as spread as what has.
    others = np.delete(np.arange(V), sorted(taken))
    alike = (table[others, None] == vectors.table[None]).all(axis=-1)
    assert not alike.any()
    again, _ = make_table(vectors, tokenizer, (V, 4), seed=1)
    assert (again[others] != table[others]).all()
    wide, _ = make_table(vectors, tokenizer, (20_000, 4), seed=0)
    spread = np.sqrt(np.square(table[sorted(taken)]).mean())
    assert np.sqrt(np.square(wide[V:]).mean()) == pytest.approx(spread, rel=0.02)


def test_subwords_find_each_other_whatever_marks_their_beginning(tmp_path):
    wordpiece = make("wordpiece", tmp_path)
    names = ["▁the", "the", "▁c", "at"]  # of SentencePiece
    table, found = make_table(vectors_of(names), wordpiece, (60, 4), seed=0)
    ids = {wordpiece.token(id): id for id in range(wordpiece.vocab_size)}
    for name, row in (("the", 0), ("c", 2), ("##at", 3)):
        np.testing.assert_array_equal(table[ids[name]], vectors_of(names).table[row])
    assert found == 3


def test_what_does_not_fit_is_one_line_with_the_cure(tmp_path):
    tokenizer = make("words", tmp_path)
    with pytest.raises(UserError, match="set model.emb_dim=4"):
        make_table(vectors_of(["the"]), tokenizer, (9, 5), seed=0)
    with pytest.raises(UserError, match="no vector of any of"):
        make_table(vectors_of(["der"]), tokenizer, (9, 4), seed=0)


@pytest.fixture
def words_config(make_config, corpus):
    """The config of a run over whole words."""
    words = sorted(set((corpus / "train.jsonl").read_text().split()))
    words = [w for w in words if w.isalpha()]
    words_tokenizer(corpus / "words", words)
    config = make_config("gpt")
    data = dataclasses.replace(config.data, tokenizer=str(corpus / "words"))
    return dataclasses.replace(config, data=data), words


def with_vectors(config, path):
    model = dataclasses.replace(config.model, embedding_from=str(path))
    return dataclasses.replace(config, model=model)


def begin(config, workdir):
    """Makes a workdir whose run stopped before its first step."""
    run = loop.build(*workdir_lib.prepare(workdir, config))
    state = loop._begin(run)
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
    with contextlib.closing(checkpoints):
        checkpoints.save(1, state, {}, {})
    return state.params


@pytest.mark.parametrize("kind", ["gpt", "t5"])
def test_any_model_begins_with_vectors(kind, make_config, tmp_path):
    config = make_config(kind)
    tokenizer = tokenizers.load(config.data.tokenizer)
    id = tokenizer.encode("a")[0]
    vectors = Vectors(["▁", tokenizer.token(id)], np.ones((2, 16), np.float32))
    vectors_lib.write(vectors, tmp_path / "v.txt")
    found, plain = (
        loop._begin(loop.build(c, tokenizer)).params
        for c in (with_vectors(config, tmp_path / "v.txt"), config)
    )
    assert (np.asarray(found["embedder"]["token"]["embedding"])[id] == 1).all()
    same = jax.tree.map(lambda a, b: bool((a == b).all()), found, plain)
    names = jax.tree.leaves(tree.names(same))
    assert [n for n, is_same in zip(names, jax.tree.leaves(same)) if not is_same] == [
        TABLE
    ]


def test_a_run_begins_with_the_vectors_of_another(words_config, tmp_path, capsys):
    config, words = words_config
    first, second, third = (tmp_path / name for name in ("one", "two", "three"))
    table = np.asarray(begin(config, first)["embedder"]["token"]["embedding"])
    vectors = open_vectors(str(first))
    assert sorted(vectors.words) == words
    names = token_names(workdir_lib.load_tokenizer(first))
    for word, row in zip(vectors.words, vectors.table):
        np.testing.assert_array_equal(row, table[names.index(word)])
    assert open_vectors(str(first), max_words=3).words == vectors.words[:3]

    capsys.readouterr()
    changed = dataclasses.replace(with_vectors(config, first), seed=1)
    begin(changed, second)
    said = capsys.readouterr().err
    total = len(words) + 2
    assert f"vectors of {first} for {len(words)} of {total} tokens" in said
    found = open_vectors(str(second))
    assert found.words == vectors.words
    np.testing.assert_array_equal(found.table, vectors.table)
    # What is begun from has a table: it is not made of vectors again.
    begin(dataclasses.replace(config, init_from=str(second)), third)
    kept = json.loads((third / "config.json").read_text())
    assert kept["model"]["embedding_from"] == ""
    with pytest.raises(UserError, match="init_from has an embedding of its own"):
        dataclasses.replace(changed, init_from=str(first))


def test_vectors_that_are_not_there_are_named(words_config, tmp_path):
    config, _ = words_config
    with pytest.raises(UserError, match=f"no file of vectors at {tmp_path}/none"):
        loop.train(with_vectors(config, tmp_path / "none"), tmp_path / "run")
