"""What a run takes from its training texts and from the run that it begins from."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from lm import cli, tree
from lm.data.sources import open_source
from lm.nn.base import replace_known
from lm.tasks import TASKS
from lm.train.config import Config
from lm.types import Params, UserError

# Fields of a model that do not touch what its parameters mean.
_OWN = (
    *("dropout_rate", "attention_dropout_rate", "attention", "dtype"),
    *("remat", "scan_unroll", "embedding_from", "expert_capacity_factor"),
    *("expert_group_size", "expert_balance_weight", "expert_z_weight"),
    "pipeline_microbatches",
)

# Fields of a task that are found rather than given, if they are ().
FOUND = ("labels", "counts", "moments", "thresholds")


def resolve(config: Config, source: Config | None) -> Config:
    """Fills in all that a run finds out when it begins.

    Args:
        config: As it was given.
        source: The config of `init_from`, if it is set.

    Raises:
        UserError: If the labels of the training split are not as they should be, or
            the source cannot serve.
    """
    if source is not None:
        config = take_model(config, source)
    task = TASKS[config.task.name][1].resolve(
        config.task, _training_examples(config), config.data.bad_rows == "skip"
    )
    return dataclasses.replace(config, task=task)


def take_model(config: Config, source: Config) -> Config:
    """Gives a config the architecture and the tokenizer of its `init_from`.

    Raises:
        UserError: If that model has learned fewer positions than the task needs.
    """
    own, limit = _own(config), source.model.position_limit
    if limit is None:
        own["max_len"] = max(config.model.max_len, source.model.max_len)
    elif getattr(config.task, "length", 0) > limit:
        raise UserError(
            f"task.length {config.task.length} exceeds the {limit} positions that the "
            f"model of {config.init_from} learned; lower it"
        )
    tokenizer = str(Path(config.init_from) / "tokenizer")
    return dataclasses.replace(
        config,
        model=replace_known(source.model, **own),
        data=dataclasses.replace(config.data, tokenizer=tokenizer),
    )


def inherit(config: Config, before: Config) -> Config:
    """Fills in what the run found out when it began, so that it can go on."""
    if config.init_from and config.init_from == before.init_from:
        config = dataclasses.replace(
            config,
            model=replace_known(before.model, **_own(config)),
            data=dataclasses.replace(config.data, tokenizer=before.data.tokenizer),
        )
    kinds = {getattr(task, "kind", "") for task in (config.task, before.task)}
    if type(config.task) is not type(before.task) or len(kinds) > 1:
        return config
    found = {
        name: getattr(before.task, name)
        for name in FOUND
        if getattr(config.task, name, None) == ()
    }
    return dataclasses.replace(config, task=dataclasses.replace(config.task, **found))


def _own(config: Config) -> dict[str, Any]:
    """Returns those fields of the model that are the run's own."""
    model = config.model
    return {name: getattr(model, name) for name in _OWN if hasattr(model, name)}


def _training_examples(config: Config) -> Iterator[dict[str, Any]]:
    data = config.data
    for spec in data.named_sources():
        source = open_source(spec, data.data_dir, data.bad_rows)
        yield from source.examples(data.train_split)


def warm_start(params: Params, found: Params, where: str) -> dict[str, Any]:
    """Returns the parameters that another run's model has under the same names.

    A task's head or an adapter around the model is not taken over.

    Args:
        params: Those that are wanted; shapes with shardings are enough.
        found: The other run's.
        where: What the other run is called.

    Returns:
        The parameters, placed as wanted, by their names in `params`.

    Raises:
        UserError: If they have none in common, or one has another shape there.
    """
    there = _by_name(_backbone(found))
    names = {id(leaf): name for name, leaf in _by_name(_backbone(params)).items()}
    taken, new = {}, []
    for name, leaf in _by_name(params).items():
        other = there.get(names.get(id(leaf), ""))
        if other is None:
            new.append(name)
        elif other.shape != leaf.shape:
            raise UserError(
                f"{name} is {leaf.shape} but {other.shape} in {where}; make the models "
                "the same"
            )
        else:
            taken[name] = jax.device_put(other, leaf.sharding)
    if not taken:
        raise UserError(f"{where} has none of this model's parameters; choose another")
    cli.say(
        f"begins with {len(taken)} parameters of {where}"
        + (f"; new: {', '.join(new)}" if new else "")
    )
    return taken


def _backbone(params: Params) -> Params:
    """Returns the part of the parameters that is a model of `lm.models`."""
    for wrapper in ("base", "backbone"):
        params = params.get(wrapper, params)
    return params


def _by_name(params: Params) -> dict[str, Any]:
    return dict(zip(jax.tree.leaves(tree.names(params)), jax.tree.leaves(params)))
