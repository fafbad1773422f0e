"""Vectors of a model's tokens, and token tables made of vectors.

Axes: V vocabulary, D dimensions.
"""

from pathlib import Path

import jax
import numpy as np

from lm import cli, tree
from lm import vectors as vectors_lib
from lm.models import build_model, word2vec
from lm.text.tokenizers import Tokenizer
from lm.train import workdir as workdir_lib
from lm.types import Array, Params, UserError
from lm.vectors import Vectors, parse_name

# Where every model has its token table.
TABLE = "embedder/token/embedding"


def open_vectors(path: str, step: str = "", max_words: int = 0) -> Vectors:
    """Returns the vectors of a file, or of the tokens of a workdir's model.

    These are the model's `word_vectors` [V, D] where it has any, else its token table;
    marks have none, nor has a token whose name cannot be in a file.

    Args:
        path: A file that `lm.vectors.read` reads, or a workdir.
        step: Of a workdir, as in `lm.train.workdir.load`.
        max_words: No more than the first; 0 means all.

    Raises:
        UserError: If there is no such file or workdir, or it is broken.
    """
    if not Path(path).is_dir():
        return vectors_lib.read(Path(path), max_words)
    loaded = workdir_lib.load(Path(path), step)
    params = loaded.params.get("backbone", loaded.params)
    model = build_model(loaded.config.model)
    if hasattr(model, "word_vectors"):
        about = []
        if isinstance(loaded.config.model, word2vec.Config):
            about.append(loaded.config.model.ngrams(loaded.tokenizer))
        found = model.apply({"params": params}, *about, method="word_vectors")
    else:
        found = params["embedder"]["token"]["embedding"]
    names = token_names(loaded.tokenizer)
    rows = [i for i, name in enumerate(names) if name.split() == [name]]
    rows = rows[: max_words or None]
    table = np.asarray(found, np.float32)[rows]
    return Vectors([names[i] for i in rows], table)


def token_names(tokenizer: Tokenizer) -> list[str]:
    """Returns what each token is called in a file of vectors, "" for a mark [V]."""
    return [
        tokenizer.token(id) if piece else ""
        for id, piece in enumerate(tokenizer.pieces)
    ]


def embed_words(
    params: Params, tokenizer: Tokenizer, path: str, seed: int
) -> dict[str, Array]:
    """Returns a model's token table with these vectors in it, by its name in `params`.

    Args:
        params: The model's; shapes with shardings are enough.
        tokenizer: The model's.
        path: As in `open_vectors`.
        seed: Of the rows that have no vector.

    Raises:
        UserError: If there are no such vectors, or they do not fit the table.
    """
    names = dict(zip(jax.tree.leaves(tree.names(params)), jax.tree.leaves(params)))
    name = next(name for name in names if name.endswith(TABLE))
    leaf, vectors = names[name], open_vectors(path)
    table, found = make_table(vectors, tokenizer, leaf.shape, seed)
    total = tokenizer.vocab_size
    cli.say(f"begins with vectors of {path} for {found:,} of {total:,} tokens")
    return {name: jax.device_put(table, leaf.sharding)}


def make_table(
    vectors: Vectors, tokenizer: Tokenizer, shape: tuple[int, int], seed: int
) -> tuple[np.ndarray, int]:
    """Returns a token table float32 [V, D], and how many of its rows are vectors.

    A token takes the vector of the text that it stands for, where both begin a word or
    neither does, or else that of the text in small letters. The other rows are normal
    with the mean square of these, so that they are neither larger nor smaller: Kim
    (2014), https://aclanthology.org/D14-1181, section 4.3.

    Args:
        vectors: Of words or of subwords.
        tokenizer: Whose tokens the rows are for; there may be more rows.
        shape: V and D.
        seed: Of the other rows.

    Raises:
        UserError: If the vectors are of another width, or no token has one.
    """
    width = vectors.table.shape[1]
    if width != shape[1]:
        raise UserError(
            f"model.embedding_from has vectors of {width} numbers but the model's "
            f"token table has rows of {shape[1]}; set model.emb_dim={width}"
        )
    sign = {"words": "", "wordpiece": "##"}.get(tokenizer.kind, "\u2581")
    keys = (parse_name(name, sign) for name in token_names(tokenizer))
    rows = np.array([vectors.find(*key) if key[0] else -1 for key in keys])
    (tokens,) = np.nonzero(rows >= 0)
    if not len(tokens):
        raise UserError(
            "model.embedding_from has no vector of any of the tokenizer's tokens; "
            "choose vectors of the same language, or a tokenizer of whole words"
        )
    found = vectors.table[rows[tokens]]
    scale = np.sqrt(np.mean(np.square(found)))
    table = scale * np.random.default_rng(seed).normal(size=shape)
    table[tokens] = found
    return table.astype(np.float32), len(tokens)
