"""The folder that an export makes: a model, a tokenizer, and what there is to know."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.atomic import make_folder, write_json, write_text
from lm.text.tokenizers import Tokenizer
from lm.train.workdir import Loaded, versions
from lm.types import UserError
from tools.export.graph import Signature

CLIENT = Path(__file__).with_name("client.py")


@contextlib.contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yields a folder beside `folder`, which takes its place if all goes well.

    Raises:
        UserError: If there is something that is not to be replaced.
    """
    if folder.exists() and not overwrite:
        raise UserError(f"{folder} exists; set --overwrite, or another --output")
    if folder.exists() and not (folder / "signature.json").exists():
        raise UserError(f"{folder} is no export; move it away, or set another --output")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    make_folder(temporary)
    try:
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def describe(
    loaded: Loaded, signatures: Sequence[Signature], made: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what `signature.json` has: names, shapes, types, labels, limits."""
    task = loaded.config.task
    return {
        **made,
        "task": task.name,
        "kind": getattr(task, "kind", ""),
        "labels": list(getattr(task, "labels", ())),
        "thresholds": _thresholds(task),
        "moments": list(getattr(task, "moments", ()) or (0.0, 1.0)),
        "marks": _marks(loaded.tokenizer),
        "vocab_size": loaded.tokenizer.vocab_size,
        "signatures": [
            {
                "name": signature.name,
                "length": signature.inputs["inputs"].shape[1],
                "inputs": _shapes(signature.inputs),
                "outputs": _shapes(signature.outputs),
            }
            for signature in signatures
        ],
        "step": loaded.step,
        "versions": versions(),
    }


def _thresholds(task: Any) -> list[float]:
    if getattr(task, "kind", "") != "several":
        return []
    return list(task.thresholds or (0.5,) * len(task.labels))


def _marks(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns what begins and ends a text, and fills up a row."""
    bos, eos = ([i] if i >= 0 else [] for i in (tokenizer.bos_id, tokenizer.eos_id))
    return {"bos": bos, "eos": eos, "pad": max(tokenizer.pad_id, 0)}


def _shapes(shapes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {"shape": list(each.shape), "dtype": str(each.dtype)}
        for name, each in sorted(shapes.items())
    }


def write(folder: Path, model: bytes, about: Mapping[str, Any], loaded: Loaded) -> None:
    """Writes the model, its tokenizer, its client and what there is to know."""
    (folder / "model.tflite").write_bytes(model)
    loaded.tokenizer.save(folder / "tokenizer")
    shutil.copy(CLIENT, folder / "client.py")
    write_json(folder / "signature.json", about)


def write_card(
    folder: Path, about: Mapping[str, Any], proof: Mapping[str, Any]
) -> None:
    """Writes `README.md`: what the model is, how to run it and how good it is."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in proof.items())
    labels = ", ".join(about["labels"]) or "none"
    write_text(
        folder / "README.md",
        f"""# {about["name"]}

A model for the task `{about["task"]}`, step {about["step"]} of a run of `lm`:
{about["quantization"]}. Labels: {labels}.

    pip install ai-edge-litert numpy tokenizers sentencepiece
    python client.py "A text"

`signature.json` has the names, shapes and types of inputs and outputs, the labels and
the versions of all that made this.

Compared with the model in JAX on held-out examples:

| | |
|---|---|
{rows}
""",
    )
