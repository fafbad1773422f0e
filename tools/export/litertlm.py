"""LiteRT-LM bundles: a decoder, its tokenizer and its chat template in one file.

https://github.com/google-ai-edge/LiteRT-LM runs it on the CPUs of phones and desktops.
The runtime puts the mark that begins a text before a prompt, reads all but the last of
its tokens by `prefill` and the last by `decode`, as `graph.py` has them.
"""

import dataclasses
import json
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lm.completion import writable
from lm.tasks.chat import ROLES, Chat
from lm.text.tokenizer import Tokenizer
from lm.train.workdir import Loaded
from lm.types import UserError
from tools.export import tflite
from tools.export.graph import Graph, Signature
from tools.export.tflite import BLOCKED, cause

__all__ = ["BLOCKED", "QUANTIZATIONS", "REQUIRES", "cause", "write"]

TASKS = ("causal_lm", "chat")

# What may be asked for, and what it does.
QUANTIZATIONS = {
    how: tflite.QUANTIZATIONS[how]
    for how in ("none", "float16", "int8", "int8_weights", "int4")
}
# What the runtime needs.
REQUIRES = "litert-lm-api numpy"

_Encode = Callable[[list[str]], list[list[int]]]
# A tokenizer's file, what is in it, and how it reads texts.
_Reader = tuple[str, bytes, _Encode]


def write(folder: Path, graph: Graph, loaded: Loaded, options: Namespace) -> None:
    """Writes `model.litertlm`, and for the proof its TF Lite file into `proof/`.

    Its conversations are those of the task chat, which takes the likeliest token; of
    causal_lm, a message is a prompt. A mark that a conversation's template spells is
    one too where a message spells it; a prompt that spells the mark of a text's
    beginning is refused by the runtime. A space that begins what is written is left
    out if the tokenizer puts one before every text.

    Raises:
        UserError: If the runtime would not write what the model does.
    """
    tokenizer, task = loaded.tokenizer, loaded.task
    _check(graph, loaded)
    name, content, encode = _read_text(tokenizer, task)
    if isinstance(task, Chat):
        _check_seams(task, encode)
    graph = dataclasses.replace(graph, signatures=tuple(_signatures(graph)))
    with tempfile.TemporaryDirectory() as temporary:
        parts = Path(temporary)
        tflite.write(parts, graph, loaded, options)
        (folder / "proof").mkdir()
        shutil.copy(parts / "model.tflite", folder / "proof")
        (parts / name).write_bytes(content)
        (parts / "llm.pb").write_bytes(_metadata(graph, loaded))
        (parts / "executor.pb").write_bytes(_executor_metadata(graph))
        _build(parts, name, folder / "model.litertlm")


def _check(graph: Graph, loaded: Loaded) -> None:
    """Raises a UserError if the runtime has nothing for the model."""
    config: Any = loaded.config.task
    if config.name not in TASKS or graph.architecture != "decoder":
        raise UserError(
            f"task {config.name} cannot be a LiteRT-LM bundle; those that can: "
            f"{', '.join(TASKS)}"
        )
    if "kv_cache_k_0" not in _decode(graph).inputs:
        raise UserError(
            f"LiteRT-LM runs transformers, and {loaded.config.model.name} is none; "
            "choose another --format"
        )
    if graph.prefix_lm:
        raise UserError(
            "LiteRT-LM reads a prompt from left to right; train with "
            "task.prefix_lm=false, or choose another --format"
        )
    if loaded.tokenizer.eos_id < 0:
        raise UserError(
            "LiteRT-LM writes up to a mark of a text's end, which the tokenizer lacks; "
            "choose another --format"
        )


def _build(parts: Path, tokenizer: str, output: Path) -> None:
    """Puts files into a bundle."""
    from litert_lm_builder import litertlm_builder

    builder: Any = litertlm_builder.LitertLmFileBuilder()
    builder.add_tflite_model(
        str(parts / "model.tflite"),
        litertlm_builder.TfLiteModelType.PREFILL_DECODE,
        # Elsewhere the runtime needs the mask of attention as an input.
        backend_constraint="cpu",
    )
    if tokenizer.endswith(".json"):
        builder.add_hf_tokenizer(str(parts / tokenizer))
    else:
        builder.add_sentencepiece_tokenizer(str(parts / tokenizer))
    builder.add_llm_metadata(str(parts / "llm.pb"))
    builder.add_executor_metadata(str(parts / "executor.pb"))
    with output.open("wb") as stream:
        builder.build(stream, validate_metadata=True)


def _signatures(graph: Graph) -> Iterator[Signature]:
    """Yields the graph's, and a `prefill` of one token.

    The runtime reads nothing whose padding is beyond the cache: where that is nearly
    full, it takes shorter ones.
    """
    prefill = next(each for each in graph.signatures if each.name != "decode")
    yield dataclasses.replace(
        prefill, name="prefill_1", length=1, inputs=_decode(graph).inputs
    )
    yield from graph.signatures


def _decode(graph: Graph) -> Signature:
    return next(each for each in graph.signatures if each.name == "decode")


def _metadata(graph: Graph, loaded: Loaded) -> bytes:
    """Returns what the runtime must know of text: an `LlmMetadata`."""
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    tokenizer, task = loaded.tokenizer, loaded.task
    made: Any = llm_metadata_pb2.LlmMetadata()  # pyright: ignore
    if tokenizer.bos_id >= 0:
        made.start_token.token_ids.ids.append(tokenizer.bos_id)
    made.stop_tokens.add().token_ids.ids.append(tokenizer.eos_id)
    # As in `lm.completion`: no mark is written, nor a row that is no token.
    allowed = writable(tokenizer, loaded.config.model.vocab_size, ())
    made.suppress_tokens.ids.extend(np.flatnonzero(~allowed).tolist())
    made.max_num_tokens = graph.length
    made.llm_model_type.generic_model.SetInParent()
    made.supports_thinking = made.supports_function_calling = False
    if isinstance(task, Chat):
        made.jinja_prompt_template = _template(task)
        # The likeliest token, as the task predicts; GREEDY is not implemented there.
        made.sampler_params.type = made.sampler_params.TOP_P
        made.sampler_params.k, made.sampler_params.p = 1, 1.0
        made.sampler_params.temperature = 1.0
    return made.SerializeToString()


def _executor_metadata(graph: Graph) -> bytes:
    """Returns which inputs are caches, whose places are on axis 2."""
    from litert_lm_builder.runtime.proto import executor_metadata_pb2

    made: Any = executor_metadata_pb2.ExecutorMetadata()  # pyright: ignore
    kinds = executor_metadata_pb2.StateBuffer  # pyright: ignore
    for name in sorted(_decode(graph).inputs):
        if name.startswith("kv_cache"):
            made.llm_executor_metadata.state_buffers.add(
                prefill_input_name=name,
                prefill_output_name=name,
                decode_input_name=name,
                decode_output_name=name,
                type=kinds.TYPE_GLOBAL_KEY_CACHE
                if "_k_" in name
                else kinds.TYPE_GLOBAL_VALUE_CACHE,
                sequence_axis=2,
            )
    return made.SerializeToString()


def _template(task: Chat) -> str:
    """Returns a conversation's template, in Jinja.

    After a turn the runtime reads what the template makes of the next beyond what it
    makes of those before; its cache has the end mark of an answer and no closing. So
    a closing comes before the next opening.
    """

    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    config, tokenizer = task.config, task.tokenizer
    openings = ", ".join(f"{quoted(r)}: {quoted(config.opening_of(r))}" for r in ROLES)
    end, closing = quoted(tokenizer.token(tokenizer.eos_id)), quoted(config.closing)
    answer = quoted(config.closing + config.opening_of("assistant"))
    trim = " | trim" if config.strip else ""
    return (
        f"{{%- set openings = {{{openings}}} -%}}"
        '{%- if messages and messages[0].role != "system" -%}'
        f"{{{{ {quoted(config.first)} }}}}{{%- endif -%}}"
        "{%- for message in messages -%}"
        f"{{%- if not loop.first -%}}{{{{ {closing} }}}}{{%- endif -%}}"
        "{{ openings[message.role] }}"
        f"{{%- if message.content is string -%}}{{{{ message.content{trim} }}}}"
        "{%- else -%}{%- for part in message.content -%}"
        f"{{{{ part.text{trim} }}}}{{%- endfor -%}}"
        "{%- endif -%}"
        f"{{{{ {end} }}}}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{ {answer} }}}}{{%- endif -%}}"
    )


def _read_text(tokenizer: Tokenizer, task: Any) -> _Reader:
    """Returns the tokenizer as the runtime has it.

    It knows no marks in a text but those that a conversation's template spells.

    Raises:
        UserError: If the runtime has none of that kind.
    """
    spelled = ""
    if isinstance(task, Chat):
        config, end = task.config, tokenizer.token(tokenizer.eos_id)
        openings = "".join(map(config.opening_of, ROLES))
        spelled = config.first + openings + end + config.closing
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer.save(Path(temporary, "tokenizer"))
        for file in Path(temporary, "tokenizer").iterdir():
            if file.name == "tokenizer.model":
                return file.name, *_sentencepiece(file.read_bytes(), spelled)
            if file.name == "tokenizer.json":
                return file.name, *_hugging_face(file.read_bytes(), spelled)
    raise UserError(
        f"LiteRT-LM has no tokenizer of the kind {tokenizer.kind}; use a model whose "
        "tokenizer was trained by python -m tools.train_tokenizer --kind=unigram"
    )


def _sentencepiece(model: bytes, spelled: str) -> tuple[bytes, _Encode]:
    """Lets a SentencePiece model read those of its marks that a template spells."""
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto.FromString(model)  # pyright: ignore
    for piece in proto.pieces:
        if piece.type == piece.CONTROL and piece.piece in spelled:
            piece.type = piece.USER_DEFINED
    model = proto.SerializeToString()
    return model, SentencePieceProcessor(model_proto=model).encode


def _hugging_face(content: bytes, spelled: str) -> tuple[bytes, _Encode]:
    """Lets a `tokenizer.json` read no marks but those that a template spells."""
    import tokenizers

    spec = json.loads(content)
    spec["post_processor"] = None  # which would add marks
    vocabulary = dict(spec["model"]["vocab"])
    spec["added_tokens"] = [
        token
        for token in spec["added_tokens"]
        # One that the model lacks would have no name.
        if not token["special"]
        or token["content"] in spelled
        or token["content"] not in vocabulary
    ]
    text = json.dumps(spec, ensure_ascii=False)
    reader = tokenizers.Tokenizer.from_str(text)
    return text.encode(), lambda texts: [
        each.ids for each in reader.encode_batch(texts)
    ]


def _check_seams(task: Chat, encode: _Encode) -> None:
    """Checks that a conversation is the same tokens as one text as in its parts.

    Raises:
        UserError: If it is not, before some word.
    """
    tokenizer = task.tokenizer
    pieces = [piece.decode(errors="replace") for piece in tokenizer.pieces]
    words = [word for word in pieces if word[:1].isalnum()]
    apart = tokenizer.encode_batch(words)
    end = tokenizer.token(tokenizer.eos_id) + task.config.closing
    for role, opening in task.openings.items():
        if not (spelled := task.config.opening_of(role)):
            continue
        together = encode([spelled + word + end + spelled for word in words])
        for word, ids, whole in zip(words, apart, together):
            parts = opening, ids, [tokenizer.eos_id], task.closing, opening
            if np.concatenate(parts).tolist() != list(whole):
                raise UserError(
                    "LiteRT-LM reads a conversation as one text, in which this "
                    f"tokenizer joins task.opening {spelled!r} with what follows it, "
                    f"such as {word!r}; choose another --format"
                )
