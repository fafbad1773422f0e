"""Runs the artefact that this folder is copied into; NumPy does all around the model.

from runtime import load
model = load("artefact")
model.predict(text="The match ended in a draw.")
"""

import json
from pathlib import Path
from typing import Any

from . import encoders
from .backends import open_model
from .bundles import Bundle
from .tokenizer import Tokenizer
from .writers import Writer


def load(folder, num_threads=2) -> Any:
    """Opens an artefact's folder.

    Args:
        folder: With a `signature.json`, a `tokenizer` and the model.
        num_threads: Of the model, where its format lets one choose.

    Returns:
        A model, whose `predict` returns a dict of JSON values for an example's fields.

    Raises:
        FileNotFoundError: If the folder has no such files.
    """
    folder = Path(folder)
    about = json.loads((folder / "signature.json").read_text(encoding="utf-8"))
    if about["format"] == "litertlm":
        return Bundle(folder / "model.litertlm", about, num_threads)
    backend = open_model(folder, num_threads)
    tokenizer = Tokenizer(folder / "tokenizer")
    if about["architecture"] == "encoder":
        return encoders.build(backend, tokenizer, about)
    return Writer(backend, tokenizer, about)
