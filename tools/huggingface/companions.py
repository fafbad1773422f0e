"""What stands beside weights: a tokenizer, and what sentence-transformers say."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers as hf
from tokenizers import processors

from lm.atomic import make_folder, write_json
from lm.models import bert
from lm.tasks import Generative, pair, rank
from lm.tasks.base import marked
from lm.text import tokenizers
from lm.text.tokenizer import CONFIG
from lm.train import workdir as workdir_lib
from lm.train.workdir import Loaded
from lm.types import UserError

_ABOUT_TOKENS = (CONFIG, "special_tokens_map.json", "added_tokens.json")
_TOKENIZER = (
    *(*_ABOUT_TOKENS, "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
_TEXTS = ("chat_template.jinja", "generation_config.json")
_MODULES, _TRANSFORMER = "modules.json", "sentence_bert_config.json"
_PROMPTS = "config_sentence_transformers.json"
_POOLING = "1_Pooling"
_SENTENCES = (_MODULES, _TRANSFORMER, _PROMPTS, _POOLING, "2_Normalize")
_POOLINGS = {
    "mean": "pooling_mode_mean_tokens",
    "first": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "last": "pooling_mode_lasttoken",
}


def read_json(path: Path, kind: type = dict) -> Any:
    """Reads a file of a checkpoint.

    Raises:
        UserError: If it is missing, is not JSON, or is no object (or no list).
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no {path}; give a folder that save_pretrained wrote, with {path.name}"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; fetch it again") from error
    if not isinstance(values, kind):
        what = "object" if kind is dict else kind.__name__
        raise UserError(f"{path} is not a JSON {what}; fetch it again")
    return values


def keep(folder: Path, tokenizer: Path, target: Path) -> None:
    """Copies what stands beside weights, but no config.

    Args:
        folder: Of the checkpoint.
        tokenizer: The folder or file of its tokenizer.
        target: Where it goes.
    """
    make_folder(target)
    _copy(folder, target, (*_TEXTS, *_SENTENCES))
    _keep_tokenizer(tokenizer, target)


def _keep_tokenizer(path: Path, target: Path) -> None:
    """Copies a tokenizer's files unless it is ours, which transformers cannot read."""
    folder, names = path, _TOKENIZER
    if path.is_file():
        folder = path.parent
        names = (*_ABOUT_TOKENS, path.name, "merges.txt" * (path.name == "vocab.json"))
    about = folder / CONFIG
    if not (about.is_file() and "kind" in read_json(about)):
        _copy(folder, target, names)


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in filter(None, names):
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        elif (source / name).is_file():
            shutil.copy(source / name, target / name)


def marks_around(path: Path) -> dict[str, None]:
    """Returns names of the marks that transformers put around no text, each None.

    What reads the last state of a decoder has to read the tokens that it learned from.

    Args:
        path: The folder or file of a tokenizer.
    """
    folder = path if path.is_dir() else path.parent
    about = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    if "kind" in about:  # ours, of which transformers know nothing
        return {}
    has_pairs = (folder / "vocab.json").exists()
    begins, ends = not has_pairs, not (has_pairs or any(folder.glob("*.model")))
    if (folder / "tokenizer.json").exists():
        made = hf.Tokenizer.from_file(str(folder / "tokenizer.json"))
        made.no_padding()
        bare, full = (
            made.encode("a", add_special_tokens=on).ids for on in (False, True)
        )
        begins, ends = full[:1] != bare[:1], full[-1:] != bare[-1:]
    begins = about.get("add_bos_token", begins)
    ends = about.get("add_eos_token", ends)
    names = ("bos_token", "cls_token") * (not begins)
    return dict.fromkeys((*names, *("eos_token", "sep_token") * (not ends)))


def give(workdir: Path, loaded: Loaded, folder: Path) -> bool:
    """Writes what stands beside the weights of an export.

    Args:
        workdir: Of the model.
        loaded: The model.
        folder: Of the export.

    Returns:
        Whether there is a tokenizer that transformers read.
    """
    origin = _origin(workdir, loaded)
    if origin and origin.parent == workdir:
        _copy(origin, folder, (*_TEXTS, *_SENTENCES))
    elif isinstance(loaded.config.task, rank.Config):
        _write_sentences(folder, loaded)
    elif origin and isinstance(loaded.task, Generative):
        _copy(origin, folder, _TEXTS)
    if origin and _joins_alike(origin, loaded):
        _copy(origin, folder, _TOKENIZER)
    if any((folder / name).exists() for name in _TOKENIZER):
        return True
    return _write_tokenizer(workdir / "tokenizer/tokenizer.json", folder, loaded)


def _origin(workdir: Path, loaded: Loaded) -> Path | None:
    """Returns what was kept of the checkpoint that a run, or one before it, began with.

    It is none if the run has another tokenizer.
    """
    config, seen = loaded.config, set()
    while not (workdir / "huggingface").exists():
        seen.add(workdir)
        workdir = Path(config.init_from)
        if not config.init_from or workdir in seen or not workdir.exists():
            return None
        config = workdir_lib.load_config(workdir)
    same = tokenizers.load(workdir / "tokenizer").fingerprint
    return workdir / "huggingface" if same == loaded.tokenizer.fingerprint else None


def _joins_alike(origin: Path, loaded: Loaded) -> bool:
    """Returns whether two texts get the marks of our task pair; RoBERTa's get more."""
    if not isinstance(loaded.config.task, pair.Config):
        return True
    file = origin / "tokenizer.json"
    if not file.exists():
        return (origin / "vocab.txt").exists()  # BERT's
    a, b = loaded.tokenizer.encode_batch(["a", "b"])
    theirs = hf.Tokenizer.from_file(str(file))
    theirs.no_padding()
    return theirs.encode("a", "b").ids == marked(loaded.tokenizer, a, b).tolist()


# --- Tokenizers of ours -------------------------------------------------------------


def _write_tokenizer(file: Path, folder: Path, loaded: Loaded) -> bool:
    """Writes a `tokenizer.json`, if there is one, that puts our marks around texts."""
    if not file.exists():
        return False
    tokenizer, model = loaded.tokenizer, loaded.config.model
    made = hf.Tokenizer.from_file(str(file))
    marks = {
        name: tokenizer.token(id)
        for name, id in (
            *(("pad", tokenizer.pad_id), ("unk", tokenizer.unk_id)),
            *(("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id)),
            ("mask", tokenizer.mask_id),
        )
        if id >= 0
    }
    writes = hasattr(loaded.model, "prefill")
    # What writes goes on from a text, or reads one as its source.
    begins = "bos" in marks and not hasattr(model, "encoder_layers")
    ends = "eos" in marks and (not writes or hasattr(model, "encoder_layers"))
    types = getattr(model, "num_types", 0)
    second = int(types > 1)
    begin = [f"{marks['bos']}:0"] if begins else []
    end = [marks["eos"]] if ends else []
    single = [*begin, "$A:0", *(f"{mark}:0" for mark in end)]
    other = [f"$B:{second}", *(f"{mark}:{second}" for mark in end)]
    made.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *other],
        special_tokens=[
            (marks[name], id)
            for name, id in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id))
            if name in marks
        ],
    )
    made.save(str(folder / "tokenizer.json"))
    if isinstance(model, bert.Config):
        also = {"cls": marks.get("bos"), "sep": marks.get("eos")}
        marks |= {name: mark for name, mark in also.items() if mark}
    inputs = ["input_ids", *["token_type_ids"] * bool(types), "attention_mask"]
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.max_len,
        "model_input_names": inputs,
        **{f"{name}_token": mark for name, mark in marks.items()},
    }
    write_json(folder / CONFIG, values)
    return True


# --- sentence-transformers ----------------------------------------------------------


def read_sentences(folder: Path) -> dict[str, Any]:
    """Returns how sentence-transformers make vectors: `pooling` and `length` if said.

    Raises:
        UserError: If they do more than pool states, or pool in another way.
    """
    settings: dict[str, Any] = {}
    path = folder / _MODULES
    for module in read_json(path, list) if path.exists() else ():
        kind = str(dict(module).get("type")).rpartition(".")[2]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UserError(
                f"{path} has a module {kind}, which is not supported; supported are "
                "Transformer, Pooling and Normalize"
            )
    path = folder / _PROMPTS
    values = read_json(path) if path.exists() else {}
    name = values.get("default_prompt_name")
    if prompt := (values.get("prompts") or {}).get(name):
        raise UserError(
            f"{path} puts the prompt {prompt!r} before every text, which is not "
            "supported; set default_prompt_name to null, and write it into your texts"
        )
    # Since version 6 the tokenizer's limit is theirs.
    for file, key in ((CONFIG, "model_max_length"), (_TRANSFORMER, "max_seq_length")):
        values = read_json(folder / file) if (folder / file).exists() else {}
        if file == _TRANSFORMER and values.get("do_lower_case"):
            raise UserError(
                f"{folder / file} makes texts lower case, which is left to the "
                "tokenizer; set do_lower_case to false if it does so"
            )
        most = values.get(key)
        if (folder / _MODULES).exists() and isinstance(most, int | float):
            settings["length"] = int(most)
    path = folder / _POOLING / "config.json"
    if path.exists():
        values = read_json(path)
        on = [key for key in values if key.startswith("pooling") and values[key]]
        if "pooling_mode" in on:  # since version 6
            on = [f"pooling_mode_{values['pooling_mode']}"]
        found = [
            ours
            for ours, theirs in _POOLINGS.items()
            if on in ([theirs], [theirs.rpartition("_token")[0]])
        ]
        if not found:
            raise UserError(
                f"{path} pools by {' and '.join(on) or 'nothing'}, which is not "
                f"supported; supported is one of {', '.join(_POOLINGS.values())}"
            )
        settings["pooling"] = found[0]
    return settings


def _write_sentences(folder: Path, loaded: Loaded) -> None:
    """Undoes `read_sentences`."""
    task = loaded.config.task
    kinds = {"Transformer": "", "Pooling": _POOLING, "Normalize": "2_Normalize"}
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, (kind, path) in enumerate(kinds.items())
    ]
    write_json(folder / _MODULES, modules)
    settings = {"max_seq_length": task.length, "do_lower_case": False}
    write_json(folder / _TRANSFORMER, settings)
    make_folder(folder / _POOLING)
    pooling = {theirs: task.pooling == ours for ours, theirs in _POOLINGS.items()}
    dim = {"word_embedding_dimension": loaded.config.model.emb_dim}
    write_json(folder / _POOLING / "config.json", dim | pooling)
