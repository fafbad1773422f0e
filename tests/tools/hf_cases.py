"""Holds imported models beside what transformers computed with the same checkpoints.

A case is a folder that `tests/oracle/references.py` writes; its docstring says what is
there. Axes: B rows, T time, S time of the encoder, V vocab.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from lm import decoding
from lm.nn.base import Output
from lm.train import workdir as workdir_lib
from lm.types import Batch
from tools import export_hf, import_hf

# Of what is largest. The erf and the tanh of GELU are 8e-5 apart in the outputs.
TOLERANCE = 2e-5
# Its attention is all but a choice of one key: in transformers, too, float32 and
# float64 are 2e-5 apart. It has no GELU.
TOLERANCES = {"t5-v1_0": 5e-5}
GRADIENT_TOLERANCE = 5e-5
# Biases of keys have no gradient but rounding.
NO_GRADIENT = 1e-6
NEW_TOKENS = 50

# The documents of each row, alone and packed.
PADDED = ((0,), (1,), (2,))
PACKED = (*PADDED, (1, 2), (2, 1))


@dataclass(frozen=True)
class Case:
    """A checkpoint, the workdir that it became, and what is to come out."""

    source: Path
    workdir: Path
    loaded: workdir_lib.Loaded
    reference: dict[str, np.ndarray]


def save_tokenizer(folder: Path) -> Path:
    """Writes a tokenizer with fewer tokens than the vocabulary of any case."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    folder.mkdir()
    tokens += [f"##{letter}" for letter in letters]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    return folder


def import_(source: Path, workdir: Path, tokenizer: Path, *flags: str) -> dict:
    words = [f"--from={source}", f"--workdir={workdir}", f"--tokenizer={tokenizer}"]
    return import_hf.main(import_hf.parser.parse_args([*words, *flags]))


def export(workdir: Path, output: Path, *flags: str) -> dict:
    words = [f"--workdir={workdir}", f"--output={output}", *flags]
    return export_hf.main(export_hf.parser.parse_args(words))


def open_case(source: Path, folder: Path, tokenizer: Path) -> Case:
    """Imports a case below a folder."""
    workdir = folder / source.name
    import_(source, workdir, tokenizer)
    reference = dict(np.load(source / "reference.npz"))
    return Case(source, workdir, workdir_lib.load(workdir), reference)


def has_places(source: Path) -> bool:
    """Whether outputs are of places, so that rows can be packed."""
    return not source.name.endswith(("classify", "regress"))


# --- Outputs ------------------------------------------------------------------------


def lay(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Joins the arrays of each row, and pads rows with 0 to the longest.

    >>> lay([[np.ones(1), np.full(2, 7)], [np.ones(1)]])
    array([[1, 7, 7],
           [1, 0, 0]], dtype=int32)
    """
    joined = [np.concatenate(row) for row in rows]
    made = np.zeros((len(rows), max(map(len, joined))), np.int32)
    for row, values in zip(made, joined):
        row[: len(values)] = values
    return made


def documents(case: Case, name: str) -> list[np.ndarray]:
    """Returns the real tokens, or their types, of each document."""
    ids = case.reference[name]
    if name.startswith("decoder"):
        return list(ids)
    lengths = case.reference["attention_mask"].sum(axis=1)
    return [row[:length] for row, length in zip(ids, lengths)]


def batch_of(case: Case, layout: Sequence[Sequence[int]]) -> Batch:
    """Returns the case's documents in rows; positions only where they are packed."""
    names = {"input_ids": ""}
    if "decoder_input_ids" in case.reference:
        names = {"input_ids": "encoder_", "decoder_input_ids": ""}
    batch = {}
    for name, prefix in names.items():
        ids = documents(case, name)
        batch[f"{prefix}inputs"] = lay([[ids[d] for d in row] for row in layout])
        batch[f"{prefix}segment_ids"] = lay(
            [[np.full(len(ids[d]), i) for i, d in enumerate(row, 1)] for row in layout]
        )
        if layout != PADDED:
            batch[f"{prefix}positions"] = lay(
                [[np.arange(len(ids[d])) for d in row] for row in layout]
            )
    if "token_type_ids" in case.reference:
        types = documents(case, "token_type_ids")
        batch["type_ids"] = lay([[types[d] for d in row] for row in layout])
    return batch


def expected(case: Case) -> np.ndarray:
    """Returns what transformers makes of the documents, [B, ...] or [B, T, ...]."""
    reference = case.reference
    if "start_logits" in reference:
        return np.stack([reference["start_logits"], reference["end_logits"]], axis=-1)
    names = ("logits", "prediction_logits", "last_hidden_state")
    return next(reference[name] for name in names if name in reference)


def compute(case: Case, batch: Batch) -> np.ndarray:
    """Returns what the imported model makes of a batch, as `expected`."""
    loaded = case.loaded
    # One device will do.
    params = jax.device_get(loaded.params)

    @jax.jit
    def apply(params, batch):
        if loaded.config.task.name == "rank":
            states = loaded.model.apply(
                {"params": params}, batch, method=lambda m, b: m.backbone.hidden(b)
            )
            return discriminate(case, states)
        output = loaded.model.apply({"params": params}, batch)
        return output.logits.dense() if isinstance(output, Output) else output

    return np.asarray(apply(params, batch))


def discriminate(case: Case, states: jax.Array) -> jax.Array:
    """Applies ELECTRA's head, which is kept without use, if there is one."""
    path = case.workdir / "huggingface/model.safetensors"
    kept = load_file(path) if path.exists() else {}
    head = "discriminator_predictions"
    if f"{head}.dense.weight" not in kept:
        return states
    weight, bias = (kept[f"{head}.dense.{name}"] for name in ("weight", "bias"))
    states = jax.nn.gelu(states @ weight.T + bias[None, None], approximate=False)
    weight, bias = (kept[f"{head}.dense_prediction.{n}"][0] for n in ("weight", "bias"))
    return states @ weight + bias


def check_outputs(case: Case) -> float:
    """Asserts that outputs are theirs at real places; returns the largest error.

    Where they are of places, packed rows are among the others.
    """
    error = _error(case)
    assert error < TOLERANCES.get(case.source.name, TOLERANCE)
    return error


def _error(case: Case) -> float:
    layout = PACKED if has_places(case.source) else PADDED
    made, wanted = compute(case, batch_of(case, layout)), expected(case)
    if layout == PADDED:
        assert made.shape == wanted.shape
        return float(np.abs(made - wanted).max() / np.abs(wanted).max())
    assert made.shape[2:] == wanted.shape[2:]
    writer = "decoder_input_ids" in case.reference
    name = "decoder_input_ids" if writer else "input_ids"
    lengths = [len(document) for document in documents(case, name)]
    worst = 0.0
    for row, numbers in zip(made, layout):
        parts = np.split(row, np.cumsum([lengths[d] for d in numbers]))
        for part, d in zip(parts, numbers):
            worst = max(worst, np.abs(part - wanted[d, : lengths[d]]).max())
    return float(worst / np.abs(wanted).max())


# --- Text ---------------------------------------------------------------------------


def check_greedy(case: Case) -> None:
    """Asserts that greedy decoding adds the same tokens."""
    np.testing.assert_array_equal(continue_greedily(case), case.reference["greedy"])


def continue_greedily(case: Case) -> np.ndarray:
    """Returns the prompt and the tokens that decoding adds, as `greedy`."""
    loaded, reference = case.loaded, case.reference
    prompt = reference["greedy"][:, :-NEW_TOKENS].astype(np.int32)
    batch = {"inputs": prompt, "segment_ids": np.ones_like(prompt)}
    if "greedy_input_ids" in reference:
        source = reference["greedy_input_ids"].astype(np.int32)
        batch["encoder_inputs"] = source
        batch["encoder_segment_ids"] = np.ones_like(source)
    config = decoding.Config(max_new_tokens=NEW_TOKENS, temperature=0)
    every = np.ones(loaded.config.model.vocab_size, bool)
    vocabulary = decoding.Vocabulary(every, np.int32(-1))
    params = jax.device_get(loaded.params)
    keys = decoding.row_keys(np.uint32(0), np.zeros((1, 1), np.uint32))
    length = prompt.shape[1] + NEW_TOKENS
    state = decoding.start(loaded.model, params, batch, keys, config, length)
    _, tokens, _ = decoding.advance(
        loaded.model, params, vocabulary, state, config, NEW_TOKENS
    )
    return np.concatenate([prompt, tokens], axis=1)


# --- Gradients ----------------------------------------------------------------------


def differentiate(case: Case, folder: Path) -> tuple[float, dict[str, np.ndarray]]:
    """Returns the loss of `labels`, and its gradient by each tensor of theirs.

    The gradient is saved as if it were parameters, and exported.
    """
    loaded, labels = case.loaded, case.reference["labels"]
    batch = batch_of(case, PADDED)

    @jax.jit
    @jax.value_and_grad
    def loss_of(params):
        logits = loaded.model.apply({"params": params}, batch).logits.dense()
        log_probs = jax.nn.log_softmax(logits)
        taken = jnp.take_along_axis(
            log_probs, jnp.maximum(labels, 0)[:, :, None], axis=-1
        )
        return -jnp.sum(taken[:, :, 0], where=labels >= 0) / (labels >= 0).sum()

    loss, gradient = loss_of(loaded.params)
    copy = folder / "gradient"
    shutil.copytree(
        case.workdir, copy, ignore=shutil.ignore_patterns("checkpoints", ".lock")
    )
    workdir_lib.save_params(copy, loaded.config, gradient)
    export(copy, folder / "exported")
    return float(loss), load_file(folder / "exported/model.safetensors")


def check_gradients(case: Case, folder: Path) -> float:
    """Asserts that loss and gradients are theirs; returns the largest error."""
    loss, made = differentiate(case, folder)
    np.testing.assert_allclose(loss, case.reference["loss"], rtol=1e-6)
    wanted = load_file(case.source / "gradients.safetensors")
    assert made.keys() == wanted.keys()
    errors = {}
    for name, value in wanted.items():
        difference, scale = np.abs(made[name] - value).max(), np.abs(value).max()
        if scale < NO_GRADIENT:
            assert difference < NO_GRADIENT, name
        else:
            errors[name] = float(difference / scale)
    worst = max(errors, key=errors.get)
    assert errors[worst] < GRADIENT_TOLERANCE, (worst, errors[worst])
    return errors[worst]


# --- Back ---------------------------------------------------------------------------


def check_export(case: Case, output: Path) -> None:
    """Asserts that what is exported is what was imported."""
    export(case.workdir, output)
    assert_same_tensors(output, case.source)
    assert config_of(output) == config_of(case.source)
    generation = case.source / "generation_config.json"
    if generation.exists():
        assert (output / generation.name).read_bytes() == generation.read_bytes()


def assert_same_tensors(made: Path, wanted: Path) -> None:
    """Asserts that two checkpoints have the same names, shapes, types and bits."""
    a, b = (load_file(folder / "model.safetensors") for folder in (made, wanted))
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].shape == b[name].shape, name
        assert a[name].dtype == b[name].dtype, name
        assert a[name].tobytes() == b[name].tobytes(), name


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())
