"""The folder that an export makes: a model, a tokenizer, and what there is to know."""

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm.atomic import write_json, write_text
from lm.completion import writable
from lm.tasks import Generative
from lm.tasks.chat import Chat
from lm.text.tokenizers import Tokenizer
from lm.train.workdir import Loaded, versions
from tools.export.graph import Graph


def describe(loaded: Loaded, graph: Graph) -> dict[str, Any]:
    """Returns what `signature.json` has: names, shapes, types, labels, limits."""
    task, tokenizer = dataclasses.asdict(loaded.config.task), loaded.tokenizer
    if graph.architecture == "encoder":
        task["length"] = graph.length
    about = {
        "architecture": graph.architecture,
        "task": task,
        "marks": {
            name: getattr(tokenizer, f"{name}_id")
            for name in ("pad", "unk", "bos", "eos", "mask")
        },
        "vocab_size": tokenizer.vocab_size,
    }
    if graph.architecture != "encoder":
        about["writing"] = _writing(loaded, graph)
    return about | {
        "signatures": [
            {
                "name": signature.name,
                "length": signature.length,
                "inputs": _shapes(signature.inputs),
                "outputs": _shapes(signature.outputs),
            }
            for signature in graph.signatures
        ],
        "step": loaded.step,
        "versions": versions(),
    }


def _writing(loaded: Loaded, graph: Graph) -> dict[str, Any]:
    """Returns what may be written, how much of it, and what stands between turns.

    `places` has room for a decoder's prompt with its continuation, or for what an
    encoder-decoder writes; `max_new_tokens` is 0 for a task without a limit.
    """
    task, tokenizer = loaded.task, loaded.tokenizer
    has_encoder = graph.architecture == "encoder_decoder"
    sentinels = tokenizer.sentinel_ids if has_encoder else ()
    allowed = writable(tokenizer, loaded.config.model.vocab_size, sentinels)
    writing: dict[str, Any] = {
        "forbidden": np.flatnonzero(~allowed).tolist(),
        "sentinels": {tokenizer.token(i): i for i in sentinels},
        "places": graph.places,
        "max_new_tokens": 0,
    }
    if isinstance(task, Generative):
        writing["max_new_tokens"] = task.decoding["max_new_tokens"]
    if isinstance(task, Chat):
        writing["opening"] = {role: ids.tolist() for role, ids in task.openings.items()}
        writing["closing"] = task.closing.tolist()
        writing["first"] = task.first.tolist()
    return writing


def _shapes(shapes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {"shape": list(each.shape), "dtype": str(each.dtype)}
        for name, each in sorted(shapes.items())
    }


def write(folder: Path, about: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Writes all but the model: the tokenizer, what runs both, what there is to know.

    `tokenizer/pieces.json` has the bytes that each id stands for, as Latin-1.
    """
    tokenizer.save(folder / "tokenizer")
    write_json(folder / "tokenizer" / "pieces.json", _pieces(tokenizer))
    here = Path(__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(here / "runtime", folder / "runtime", ignore=ignored)
    shutil.copy(here / "client.py", folder / "client.py")
    write_json(folder / "signature.json", about)


def _pieces(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns what the file of a tokenizer's library does not tell of its ids."""
    special = np.flatnonzero(tokenizer.is_special).tolist()
    return {
        "kind": tokenizer.kind,
        "lossless": tokenizer.lossless,
        "unk_id": tokenizer.unk_id,
        "drops_space": tokenizer.drops_space,
        "marks": {i: tokenizer.token(i) for i in special if i != tokenizer.unk_id},
        "pieces": [piece.decode("latin-1") for piece in tokenizer.pieces],
    }


def size(folder: Path) -> int:
    """Returns the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_card(
    folder: Path, about: Mapping[str, Any], proof: Mapping[str, Any], format: Any
) -> None:
    """Writes `README.md`: what the model is, how to run it and how good it is.

    Args:
        folder: The artefact.
        about: See `describe`.
        proof: See `tools.export.proof`.
        format: The module that wrote the model.
    """
    task, versions = about["task"], about["versions"]
    labels = ", ".join(map(str, task.get("labels", ())))
    signatures = "\n".join(
        f"| `{each['name']}` | {_listed(each['inputs'])} | {_listed(each['outputs'])} |"
        for each in about["signatures"]
    )
    rows = "\n".join(f"| {name} | {_shown(value)} |" for name, value in proof.items())
    write_text(
        folder / "README.md",
        f"""# {about["name"]}

A model for the task `{task["name"]}`, {about["format"]}, {about["quantization"]}: step
{about["step"]} of a run of `lm` {versions["lm"]} with jax {versions["jax"]}.
{labels and f"Labels: {labels}."}

    pip install {format.REQUIRES}
    python client.py "A text"
    python client.py '{{"text": "A text"}}'

or in Python:

    from runtime import load
    print(load("this/folder").predict(text="A text"))

A task of several fields gets them as JSON, or as keywords. `signature.json` has the
options of the task, the ids of marks, and these functions:

| function | inputs | outputs |
|---|---|---|
{signatures}
{getattr(format, "NOTE", "")}
Compared with the model in JAX on held-out examples, where `before` is the score in JAX
and `after` that of this model; latencies are medians, of one row or of one token that
is written, with 2 threads where a format lets one choose:

| | |
|---|---|
{rows}
""",
    )


def _listed(shapes: Mapping[str, Any]) -> str:
    """Returns names, types and shapes in a line; of many caches, the first."""
    first = {re.sub(r"\d+$", "…", name): each for name, each in shapes.items()}
    return ", ".join(
        f"`{name}` {each['dtype']} {each['shape']}" for name, each in first.items()
    )


def _shown(value: Any) -> Any:
    return f"{value:,.4g}" if isinstance(value, float) else value
