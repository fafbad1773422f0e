"""Writes tiny checkpoints of Hugging Face's, and what transformers computes with them.

The tests of `tools.import_hf` and `tools.export_hf` hold our models beside these. The
script runs where PyTorch and transformers are (the extra `bench`), never beside JAX:

    python tests/oracle/references.py OUT [CASE ...]
    python tests/oracle/references.py --check IMPORTED_DIR REFERENCE_CASE_DIR

The first command writes a folder OUT/CASE for each case named (all when none is):
`config.json`, `model.safetensors` (float32), where the model writes text
`generation_config.json`, and `reference.npz` with

- `input_ids`, `attention_mask` [3, T], padded on the right to T; where the model has
  two types of tokens `token_type_ids` [3, T]; of an encoder-decoder
  `decoder_input_ids` [3, U], without padding;
- each output under the name that transformers gives it (`logits`, `start_logits`,
  `last_hidden_state`, `pooler_output`, ...), zero at padded places;
- where the model writes text, `greedy` [1, 5 + 50]: a prompt and what greedy decoding
  adds to it, over the end of text if it came (it does not); of an encoder-decoder
  `greedy_input_ids` [1, 9] and `greedy` [1, 1 + 50], which begins with the start
  token; and `greedy_gap`, the least margin of a best logit over the second best;
- in the cases with gradients, `labels` [3, T], each the target of the logits at its own
  place, -100 where there is none; `loss`, the mean cross-entropy over the others;
  and beside it `gradients.safetensors`, the gradient of the loss by each parameter.

Weights are drawn at random, and sizes and options chosen, so that a transposed
matrix, a wrong order of heads or an option that is dropped changes the outputs.

The second command loads IMPORTED_DIR as a user would, and compares it with the case's
folder, whose name says the case. It prints one line of JSON:

- `warnings`: what was logged, but for what loading the case's folder logs too (that
  the head of T5 is not tied);
- `keys`: the names that were missing, unexpected or mismatched, by kind;
- `tensors`: the names of those that are not there in both with the same bits;
- `config`: the names of the fields that differ;
- `outputs`: by name the largest difference from `reference.npz`, null where the shapes
  differ.

It exits with 1 unless the first three are empty.
"""

import argparse
import dataclasses
import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors.torch import save_file
from torch.nn import functional as F  # noqa: N812

LENGTHS = (23, 11, 4)
DECODER_LENGTH = 13
PROMPT_LENGTH = 5
SOURCE_LENGTH = 9
NEW_TOKENS = 50
# Ids below are special in one family or another.
FIRST_ID = 5
LABELS = ("joy", "anger", "fear", "love", "surprise")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG")


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of a family, with its options.

    Attributes:
      auto: The class that a user loads it with.
      config: The family's sizes and options.
      std: The standard deviation of the weights, by which greedy text varies.
      untied: Whether the head of T5 has a matrix of its own, which its config in
        transformers 5 cannot say.
      as_published: Fields of `config.json` that are not as transformers 5 writes them,
        but as in the published checkpoints.
      gradients: Whether there are those of a training step.
    """

    auto: type
    config: hf.PreTrainedConfig
    std: float = 0.3
    untied: bool = False
    as_published: dict = dataclasses.field(default_factory=dict)
    gradients: bool = False

    @property
    def writes(self) -> bool:
        return self.auto in (hf.AutoModelForCausalLM, hf.AutoModelForSeq2SeqLM)


def labelled(names: tuple[str, ...]) -> dict:
    """Returns the options of a head with these labels."""
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


# The options of a family, over which a case's own go. Epsilons are large, so that one
# that is lost shows.
ENCODER = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 37,
    "layer_norm_eps": 3e-3,
}
DECODER = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 96,
    "rms_norm_eps": 3e-3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def bert(**options) -> hf.BertConfig:
    return hf.BertConfig(**ENCODER | {"vocab_size": 61} | options)


def roberta(**options) -> hf.RobertaConfig:
    # Positions begin at 2, after that of padding.
    family = {"vocab_size": 62, "max_position_embeddings": 39, "type_vocab_size": 1}
    return hf.RobertaConfig(**ENCODER | family | options)


def distilbert(**options) -> hf.DistilBertConfig:
    family = {
        "vocab_size": 61,
        "dim": 24,
        "n_layers": 3,
        "n_heads": 3,
        "hidden_dim": 40,
        "max_position_embeddings": 37,
    }
    return hf.DistilBertConfig(**family | options)


def electra(**options) -> hf.ElectraConfig:
    family = {"vocab_size": 63, "embedding_size": 14}
    return hf.ElectraConfig(**ENCODER | family | options)


def albert(**options) -> hf.AlbertConfig:
    family = {
        "vocab_size": 64,
        "embedding_size": 14,
        "num_hidden_groups": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    return hf.AlbertConfig(**ENCODER | family | options)


def gpt2(**options) -> hf.GPT2Config:
    family = {
        "vocab_size": 61,
        "n_positions": 64,
        "n_embd": 24,
        "n_layer": 3,
        "n_head": 3,
        "n_inner": 40,
        "layer_norm_epsilon": 3e-3,
        "bos_token_id": 3,
        "eos_token_id": 3,
    }
    return hf.GPT2Config(**family | options)


def neox(**options) -> hf.GPTNeoXConfig:
    family = {
        "vocab_size": 66,
        "max_position_embeddings": 96,
        "bos_token_id": 3,
        "eos_token_id": 3,
    }
    return hf.GPTNeoXConfig(**ENCODER | family | options)


def llama(**options) -> hf.LlamaConfig:
    return hf.LlamaConfig(**DECODER | options)


def t5(family: type[hf.PreTrainedConfig] = hf.T5Config, **options):
    sizes = {
        "vocab_size": 61,
        "d_model": 22,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "num_heads": 3,
        "d_kv": 6,
        "d_ff": 34,
        "relative_attention_num_buckets": 10,
        "relative_attention_max_distance": 16,
        "layer_norm_epsilon": 3e-3,
    }
    start = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return family(**sizes | start | options)


def rope(kind: str = "default", **options) -> dict:
    return {"rope_type": kind, **options}


CASES = {
    "bert-model": Case(hf.AutoModel, bert()),
    "bert-mlm": Case(
        hf.AutoModelForMaskedLM, bert(num_hidden_layers=2), gradients=True
    ),
    "bert-pretraining": Case(hf.AutoModelForPreTraining, bert()),
    "bert-classify": Case(
        hf.AutoModelForSequenceClassification, bert(**labelled(LABELS))
    ),
    "bert-regress": Case(hf.AutoModelForSequenceClassification, bert(num_labels=1)),
    "bert-tag": Case(hf.AutoModelForTokenClassification, bert(**labelled(TAGS))),
    "bert-answer": Case(hf.AutoModelForQuestionAnswering, bert()),
    "roberta-mlm": Case(hf.AutoModelForMaskedLM, roberta()),
    "roberta-classify": Case(
        hf.AutoModelForSequenceClassification, roberta(**labelled(LABELS))
    ),
    "distilbert-mlm": Case(hf.AutoModelForMaskedLM, distilbert()),
    "distilbert-classify": Case(
        hf.AutoModelForSequenceClassification, distilbert(**labelled(LABELS))
    ),
    "electra-discriminator": Case(hf.AutoModelForPreTraining, electra()),
    "electra-classify": Case(
        hf.AutoModelForSequenceClassification, electra(**labelled(LABELS))
    ),
    "electra-mlm": Case(hf.AutoModelForMaskedLM, electra()),
    "albert-mlm": Case(hf.AutoModelForMaskedLM, albert()),
    "gpt2": Case(hf.AutoModelForCausalLM, gpt2()),
    # A row's last token is found by that of padding.
    "gpt2-classify": Case(
        hf.AutoModelForSequenceClassification,
        gpt2(n_layer=1, pad_token_id=0, **labelled(LABELS)),
    ),
    "gpt2-tag": Case(
        hf.AutoModelForTokenClassification, gpt2(n_layer=1, **labelled(TAGS))
    ),
    # A quarter of 16 dimensions is turned, in two pairs.
    "neox": Case(
        hf.AutoModelForCausalLM,
        neox(
            hidden_size=32,
            num_attention_heads=2,
            intermediate_size=36,
            rope_parameters=rope(rope_theta=1e4, partial_rotary_factor=0.25),
            use_parallel_residual=True,
        ),
    ),
    "neox-sequential": Case(
        hf.AutoModelForCausalLM,
        neox(
            rope_parameters=rope(rope_theta=1e3, partial_rotary_factor=0.5),
            use_parallel_residual=False,
        ),
    ),
    "neox-classify": Case(
        hf.AutoModelForSequenceClassification,
        neox(num_hidden_layers=1, pad_token_id=0, **labelled(LABELS)),
    ),
    "llama2": Case(
        hf.AutoModelForCausalLM,
        llama(num_attention_heads=3, num_key_value_heads=3),
    ),
    "llama-classify": Case(
        hf.AutoModelForSequenceClassification,
        llama(num_hidden_layers=1, pad_token_id=0, **labelled(LABELS)),
    ),
    # Waves of 6, 87 and 1196 places: kept, blended and stretched.
    "llama3": Case(
        hf.AutoModelForCausalLM,
        llama(
            num_hidden_layers=2,
            head_dim=10,
            intermediate_size=28,
            tie_word_embeddings=True,
            max_position_embeddings=1024,
            rope_parameters=rope(
                "llama3",
                rope_theta=5e5,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=128,
            ),
        ),
        gradients=True,
    ),
    "llama-linear": Case(
        hf.AutoModelForCausalLM,
        llama(head_dim=8, rope_parameters=rope("linear", rope_theta=1e4, factor=4.0)),
    ),
    "smollm": Case(
        hf.AutoModelForCausalLM,
        llama(
            tie_word_embeddings=True,
            rope_parameters=rope(rope_theta=1e5),
        ),
    ),
    "mistral": Case(
        hf.AutoModelForCausalLM,
        hf.MistralConfig(**DECODER, head_dim=8, sliding_window=7),
    ),
    "qwen2": Case(
        hf.AutoModelForCausalLM,
        hf.Qwen2Config(**DECODER, tie_word_embeddings=True),
    ),
    "qwen3": Case(hf.AutoModelForCausalLM, hf.Qwen3Config(**DECODER, head_dim=8)),
    "gemma2": Case(
        hf.AutoModelForCausalLM,
        hf.Gemma2Config(
            **DECODER,
            head_dim=8,
            query_pre_attn_scalar=11,
            sliding_window=6,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
        std=0.1,
    ),
    "gemma3": Case(
        hf.AutoModelForCausalLM,
        hf.Gemma3TextConfig(
            **DECODER,
            head_dim=8,
            query_pre_attn_scalar=11,
            sliding_window=6,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": rope("linear", rope_theta=1e6, factor=8.0),
                "sliding_attention": rope(rope_theta=1e4),
            },
        ),
        std=0.1,
    ),
    "t5-v1_0": Case(hf.AutoModelForSeq2SeqLM, t5(feed_forward_proj="relu"), std=0.4),
    # The config turns this `tie_word_embeddings` into `scale_decoder_outputs`.
    "t5-v1_1": Case(
        hf.AutoModelForSeq2SeqLM,
        t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        untied=True,
    ),
    "mt5": Case(
        hf.AutoModelForSeq2SeqLM,
        t5(hf.MT5Config, vocab_size=65, feed_forward_proj="gated-gelu"),
        untied=True,
        as_published={"tie_word_embeddings": False},
    ),
}


def build(case: Case, seed: int) -> hf.PreTrainedModel:
    """Returns the case's model, with every parameter drawn anew.

    A vector is drawn around the value that it begins at: a bias around 0, the scale of
    a norm around 1, or around 0 where the norm adds the 1.
    """
    model = case.auto.from_config(
        case.config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    if case.untied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.all_tied_weights_keys.pop("lm_head.weight")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * case.std
            parameter.copy_(parameter + noise if parameter.ndim == 1 else noise)
    return model


def draw_ids(config: hf.PreTrainedConfig, generator, *shape: int) -> torch.Tensor:
    return torch.randint(FIRST_ID, config.vocab_size, shape, generator=generator)


def draw_batch(config: hf.PreTrainedConfig, generator) -> dict[str, torch.Tensor]:
    """Returns the arguments of the model: rows of `LENGTHS`, padded on the right."""
    places = torch.arange(max(LENGTHS))
    lengths = torch.tensor(LENGTHS)[:, None]
    mask = places < lengths
    # Without an id of padding any will do: the mask hides it.
    padding = config.pad_token_id or 0
    batch = {
        "input_ids": draw_ids(config, generator, *mask.shape).where(mask, padding),
        "attention_mask": mask.long(),
    }
    if getattr(config, "type_vocab_size", 0) > 1:
        batch["token_type_ids"] = (mask & (places >= lengths // 3)).long()
    if config.is_encoder_decoder:
        ids = draw_ids(config, generator, len(LENGTHS), DECODER_LENGTH)
        ids[:, 0] = config.decoder_start_token_id
        batch["decoder_input_ids"] = ids
    return batch


def draw_labels(case: Case, batch: dict, generator) -> torch.Tensor:
    """Returns the target of each place [B, T]: the next token, or of some any token."""
    mask = batch["attention_mask"].bool()
    if case.writes:
        ids = batch["input_ids"].where(mask, -100)
        return F.pad(ids[:, 1:], (0, 1), value=-100)
    chosen = torch.rand(mask.shape, generator=generator) < 0.4
    return draw_ids(case.config, generator, *mask.shape).where(mask & chosen, -100)


@torch.no_grad()
def compute(model: hf.PreTrainedModel, batch: dict) -> dict[str, np.ndarray]:
    """Returns the outputs by name, zero at the padded places of the inputs."""
    mask = batch["attention_mask"]
    outputs = {}
    for name, value in model(**batch, use_cache=False).items():
        # The encoder's states are inside: they are not what the model is asked for.
        if name == "encoder_last_hidden_state":
            continue
        if value.shape[:2] == mask.shape:
            value = value * mask.reshape(mask.shape + (1,) * (value.ndim - 2))
        outputs[name] = value.numpy()
    return outputs


@torch.no_grad()
def continue_greedily(model: hf.PreTrainedModel, generator) -> dict[str, np.ndarray]:
    """Returns `greedy` and `greedy_gap`, and the source of an encoder-decoder.

    Raises:
      RuntimeError: if decoding with a cache and one pass over the text disagree.
    """
    config = model.config
    length = SOURCE_LENGTH if config.is_encoder_decoder else PROMPT_LENGTH
    source = draw_ids(config, generator, 1, length)
    text = model.generate(
        source,
        attention_mask=torch.ones_like(source),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=-1,
        pad_token_id=0,
    )
    if config.is_encoder_decoder:
        arguments = {"input_ids": source, "decoder_input_ids": text[:, :-1]}
    else:
        arguments = {"input_ids": text[:, :-1]}
    logits = model(**arguments, use_cache=False).logits[:, -NEW_TOKENS:]
    if not torch.equal(logits.argmax(-1), text[:, -NEW_TOKENS:]):
        raise RuntimeError("greedy text is not that of the best logits")
    best, second = logits.topk(2).values.unbind(-1)
    arrays = {"greedy": text.numpy(), "greedy_gap": (best - second).min().numpy()}
    if config.is_encoder_decoder:
        arrays["greedy_input_ids"] = source.numpy()
    return arrays


def is_telling(config: hf.PreTrainedConfig, arrays: dict[str, np.ndarray]) -> bool:
    """Whether greedy text varies, never ends, and does not hang on a rounding."""
    new = set(arrays["greedy"][0, -NEW_TOKENS:].tolist())
    return (
        len(new) >= 10
        and new.isdisjoint((config.eos_token_id, config.pad_token_id))
        and arrays["greedy_gap"] > 2e-3
    )


def differentiate(
    model: hf.PreTrainedModel, batch: dict, labels: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns the mean cross-entropy and its gradient by each parameter."""
    logits = model(**batch, use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    return loss.detach(), {
        name: parameter.grad for name, parameter in model.named_parameters()
    }


def search(case: Case) -> tuple[int, hf.PreTrainedModel, dict, dict[str, np.ndarray]]:
    """Returns the first seed that serves, its model, batch and arrays.

    Raises:
      RuntimeError: if no seed makes greedy text that tells models apart.
    """
    for seed in range(1000):
        model = build(case, seed)
        generator = torch.Generator().manual_seed(seed)
        batch = draw_batch(case.config, generator)
        arrays = {name: value.numpy() for name, value in batch.items()}
        arrays |= compute(model, batch)
        if not case.writes:
            return seed, model, batch, arrays
        arrays |= continue_greedily(model, generator)
        if is_telling(case.config, arrays):
            return seed, model, batch, arrays
    raise RuntimeError(f"{case.config.model_type}: no seed makes text that varies")


def write(folder: Path, case: Case) -> str:
    """Writes the case's folder, and returns a line about it."""
    seed, model, batch, arrays = search(case)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if case.as_published:
        path = folder / "config.json"
        fields = json.loads(path.read_text()) | case.as_published
        path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    if case.gradients:
        labels = draw_labels(case, batch, torch.Generator().manual_seed(seed))
        loss, gradients = differentiate(model, batch, labels)
        arrays |= {"labels": labels.numpy(), "loss": loss.numpy()}
        save_file(gradients, folder / "gradients.safetensors")
    np.savez_compressed(folder / "reference.npz", **arrays)
    return describe(folder, seed, arrays)


def describe(folder: Path, seed: int, arrays: dict[str, np.ndarray]) -> str:
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1000
    words = [f"{folder.name:22} {size:4.0f} kB", f"seed {seed}"]
    for name, value in arrays.items():
        if value.dtype == np.float32 and value.ndim:
            scale = value[value != 0].std()
            words.append(f"{name} {list(value.shape)} std {scale:.2f}")
    if "greedy" in arrays:
        distinct = len(np.unique(arrays["greedy"][0, -NEW_TOKENS:]))
        words.append(f"greedy {distinct} tokens, gap {arrays['greedy_gap']:.4f}")
    if "loss" in arrays:
        words.append(f"loss {arrays['loss']:.4f}")
    return "  ".join(words)


class Listener(logging.Handler):
    """Keeps the text of what is logged."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord):
        self.lines.append(record.getMessage())


def load(auto: type, folder: Path) -> tuple[hf.PreTrainedModel, dict, list[str]]:
    """Returns the folder's model, what loading says of its keys, and its warnings."""
    listener = Listener()
    logger = hf.utils.logging.get_logger("transformers")
    logger.addHandler(listener)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model, info = auto.from_pretrained(
                folder,
                output_loading_info=True,
                # They are in the information; otherwise loading raises.
                ignore_mismatched_sizes=True,
                attn_implementation="eager",
            )
    finally:
        logger.removeHandler(listener)
    lines = listener.lines + [str(warning.message) for warning in caught]
    keys = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    return model.eval(), keys, lines


def is_same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Whether both are there, with one type, one shape and the same bits."""
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.numpy().tobytes() == b.numpy().tobytes()


def distance(a: np.ndarray, b: np.ndarray) -> float | None:
    """Returns the largest difference, or None between different shapes."""
    return float(np.abs(a - b).max()) if a.shape == b.shape else None


def check(imported: Path, reference: Path) -> dict:
    """Returns how the model of `imported` differs from that of `reference`."""
    case = CASES[reference.name]
    model, keys, lines = load(case.auto, imported)
    expected, _, usual = load(case.auto, reference)
    ours, theirs = model.state_dict(), expected.state_dict()
    tensors = [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if not is_same(ours.get(name), theirs.get(name))
    ]
    fields, wanted = model.config.to_dict(), expected.config.to_dict()
    config = [
        name
        for name in sorted((fields.keys() | wanted.keys()) - {"_name_or_path"})
        if fields.get(name) != wanted.get(name)
    ]
    with np.load(reference / "reference.npz") as arrays:
        names = draw_batch(case.config, torch.Generator())
        batch = {name: torch.from_numpy(arrays[name]) for name in names}
        outputs = {
            name: distance(value, arrays[name])
            for name, value in compute(model, batch).items()
        }
    return {
        "warnings": [line for line in lines if line not in usual],
        "keys": keys,
        "tensors": tensors,
        "config": config,
        "outputs": outputs,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("folder", type=Path, help="OUT, or IMPORTED_DIR")
    parser.add_argument("cases", nargs="*", help="CASE ..., or REFERENCE_CASE_DIR")
    options = parser.parse_args(arguments)
    hf.utils.logging.disable_progress_bar()
    if options.check:
        if len(options.cases) != 1:
            parser.error("--check takes IMPORTED_DIR and REFERENCE_CASE_DIR")
        found = check(options.folder, Path(options.cases[0]))
        print(json.dumps(found))
        return int(any(found[name] for name in ("warnings", "keys", "tensors")))
    unknown = set(options.cases) - CASES.keys()
    if unknown:
        parser.error(f"no case {sorted(unknown)}; there are {', '.join(CASES)}")
    # It warns of the end of text that never comes.
    hf.utils.logging.set_verbosity_error()
    for name in options.cases or CASES:
        print(write(options.folder / name, CASES[name]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
