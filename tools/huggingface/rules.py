"""How a `config.json` of transformers and a model's config here say the same.

A rule covers some keys of theirs, in both directions. What no rule covers is an error,
unless it is known to change no number.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lm.types import UserError

Values = Mapping[str, Any]

# Keys that leave a model's numbers as they are.
IGNORED = frozenset(
    (
        *("architectures", "model_type", "_name_or_path", "transformers_version"),
        *("torch_dtype", "dtype", "use_cache", "torchscript", "use_bfloat16"),
        *("output_attentions", "output_hidden_states", "return_dict"),
        *("gradient_checkpointing", "chunk_size_feed_forward", "auto_map"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id"),
        *("cls_token_id", "mask_token_id", "unk_token_id", "tokenizer_class"),
        *("initializer_range", "initializer_factor", "classifier_dropout"),
        *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task"),
        *("task_specific_params", "is_encoder_decoder"),
        *("n_ctx", "language", "model_max_length", "attn_implementation"),
        *("output_past", "tie_weights_", "_num_labels", "name", "is_llama_config"),
        "transformers.js_config",
        *(
            "_attn_implementation",
            "attn_implementation_autoset",
            "cache_implementation",
        ),
        *("summary_activation", "summary_first_dropout", "summary_last_dropout"),
        *("summary_proj_to_labels", "summary_type", "summary_use_proj"),
        *("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
        *("pooler_size_per_head", "pooler_type", "directionality"),
        *("classifier_dropout_prob", "qa_dropout", "seq_classif_dropout"),
        # Of generation, in configs that are older than `generation_config.json`.
        *("max_length", "min_length", "do_sample", "early_stopping", "num_beams"),
        *("temperature", "top_k", "top_p", "repetition_penalty", "length_penalty"),
        *("no_repeat_ngram_size", "num_return_sequences", "bad_words_ids"),
        *("forced_bos_token_id", "forced_eos_token_id", "prefix"),
    )
)
# Keys that do so where they are false or empty.
UNLESS_SET = frozenset(("pruned_heads", "rope_interleaved"))
# More parameters than that in one direction are no model's.
MOST = 2**31


@dataclass(frozen=True)
class Rule:
    """Some keys of theirs.

    Attributes:
        keys: What it covers.
        read: From their values, defaults filled in, to fields of ours.
        write: From our config to their values; keys may be left out.
    """

    keys: tuple[str, ...]
    read: Callable[[Values], dict[str, Any]]
    write: Callable[[Any], dict[str, Any]]


def same(ours: str, theirs: str, of: str = "") -> Rule:
    """A number or a word that means the same; None there is 0 here.

    Args:
        ours: Our field.
        theirs: Their key.
        of: What of our config is written, if it is not the field.
    """
    return Rule(
        (theirs,),
        lambda values: {ours: 0 if values[theirs] is None else values[theirs]},
        lambda config: {theirs: getattr(config, of or ours)},
    )


def named(ours: str, theirs: str, names: Mapping[str, str]) -> Rule:
    """A choice; `names` is from theirs to ours, and the first of equals is written."""

    def read(values: Values) -> dict[str, Any]:
        if values[theirs] not in names:
            raise UserError(
                f"config.json: {theirs} is {values[theirs]!r}, which is not supported; "
                f"supported are {', '.join(names)}"
            )
        return {ours: names[values[theirs]]}

    def write(config: Any) -> dict[str, Any]:
        value = getattr(config, ours)
        found = [their for their, our in names.items() if our == value]
        if not found:
            raise UserError(f"model.{ours} {value} is unknown to this family")
        return {theirs: found[0]}

    return Rule((theirs,), read, write)


def fixed(theirs: str, *allowed: Any) -> Rule:
    """A key that must have one of these values; the first is written."""

    def read(values: Values) -> dict[str, Any]:
        if values[theirs] not in allowed:
            raise UserError(
                f"config.json: {theirs} is {values[theirs]!r}, which is not supported; "
                f"it must be {allowed[0]!r}"
            )
        return {}

    return Rule((theirs,), read, lambda config: {theirs: allowed[0]})


def read(rules: Iterable[Rule], defaults: Values, given: Values) -> dict[str, Any]:
    """Returns the fields of our config that a `config.json` says.

    Args:
        rules: Of its family.
        defaults: What transformers takes for keys that are missing.
        given: The `config.json`.

    Raises:
        UserError: If there is a key that no rule covers, a value that is not supported
            or of another type, or a key is missing that has no default.
    """
    rules = list(rules)
    covered = {key for rule in rules for key in rule.keys}
    given = {key: value for key, value in given.items() if value is not None}
    empty = {key for key in UNLESS_SET & given.keys() if not given[key]}
    unknown = sorted(given.keys() - covered - IGNORED - empty)
    if unknown:
        said = ", ".join(f"{key} = {given[key]!r:.60}" for key in unknown)
        raise UserError(
            f"config.json: {said}: unknown, and may change the numbers; take out what "
            "does not"
        )
    for key in sorted(covered & given.keys()):
        if isinstance(given[key], int | float) and not abs(given[key]) < MOST:
            raise UserError(
                f"config.json: {key} is {given[key]}, which no model has; fetch it "
                "again"
            )
    values = {**dict.fromkeys(covered), **defaults, **given}
    fields: dict[str, Any] = {}
    for rule in rules:
        try:
            fields |= rule.read(values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            said = ", ".join(f"{key} = {values[key]!r}" for key in rule.keys)
            raise UserError(
                f"config.json: {said} cannot be understood; fetch it again"
            ) from error
    return fields


def write(rules: Iterable[Rule], config: Any) -> dict[str, Any]:
    """Returns the keys of a `config.json` for a config of ours."""
    values: dict[str, Any] = {}
    for rule in rules:
        values |= rule.write(config)
    return values
