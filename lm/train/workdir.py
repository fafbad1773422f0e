"""The folder of a run: it explains itself, and every command needs nothing else.

config.json  versions.json  tokenizer/  checkpoints/  metrics.jsonl  events.…
"""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from lm import config as config_lib
from lm import distributed, sharding
from lm.adapt import lora
from lm.atomic import write_json
from lm.tasks import Task, build_task
from lm.text import tokenizers
from lm.text.tokenizers import Tokenizer
from lm.train.begin import inherit, resolve
from lm.train.checkpoint import Checkpoints
from lm.train.config import Config
from lm.train.state import placed_params
from lm.types import Params, UserError

PACKAGES = (
    *("lm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("tensorflow-cpu", "tensorflow", "tensorflow-datasets", "sentencepiece"),
    *("tokenizers", "ml-collections", "clu"),
)

# What a resumed run may change: nothing here alters a step that was taken.
MAY_CHANGE = (
    *("num_train_steps", "log_every_steps", "eval_every_steps"),
    *("checkpoint_every_steps", "eval", "checkpoint", "mesh", "guard"),
    *("data.tokenizer", "data.data_dir", "data.cache_dir", "data.prefetch"),
    *("data.num_workers", "model.remat", "model.scan_unroll"),
)


@dataclass(frozen=True)
class Loaded:
    """A trained model with all that its use takes."""

    config: Config
    tokenizer: Tokenizer
    task: Task
    model: nn.Module
    params: Params
    step: int


def prepare(workdir: Path, config: Config) -> tuple[Config, Tokenizer]:
    """Fills a workdir that is held `alone`, or checks that it fits the config.

    One without a checkpoint has nothing to lose, and is made anew. One with
    checkpoints needs no tokenizer but its own copy.

    Of several processes the first does so, and the others read what it wrote.

    Returns the config with all that the run found out when it began, and the tokenizer.

    Raises:
        UserError: If the folder cannot be written, was made by another config or
            with another tokenizer, the tokenizer does not fit the model, or another
            process has another config or does not see the folder.
    """
    made: list[tuple[Config, Tokenizer]] = []

    def make() -> dict[str, Any]:
        made.append(_prepare(workdir, config))
        return {"given": as_json(config), "found": as_json(made[0][0])}

    first = distributed.from_first(make)
    if made:
        return made[0]
    for key, there, here in _differences(first["given"], as_json(config)):
        raise UserError(
            f"the hosts have different configs: {key} is {there!r} on process 0 and "
            f"{here!r} on this one; give all the same"
        )
    path = workdir / "config.json"
    if not path.exists() or config_lib.read(path) != first["found"]:
        raise UserError(
            f"this process does not see the {path} that process 0 wrote; choose "
            "a --workdir that all hosts share"
        )
    return Config.of(first["found"]), load_tokenizer(workdir)


def _prepare(workdir: Path, config: Config) -> tuple[Config, Tokenizer]:
    path = workdir / "config.json"
    if (workdir / "checkpoints").exists():
        before = Config.of(config_lib.read(path))
        config = inherit(config, before)
        check_same(workdir, as_json(before), as_json(config))
        tokenizer = load_tokenizer(workdir)
        original = Path(config.data.tokenizer)
        given = tokenizers.load(original) if original.exists() else tokenizer
        if given.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"{workdir} was made with another tokenizer than {original}; choose "
                "another --workdir"
            )
        is_new = False
    else:
        source = load_config(Path(config.init_from)) if config.init_from else None
        config = resolve(config, source)
        tokenizer = tokenizers.load(Path(config.data.tokenizer))
        is_new = True
    check_vocabulary(config, tokenizer)
    with _writes(workdir):
        if is_new:
            tokenizer.save(workdir / "tokenizer", overwrite=True)
        write_json(workdir / "versions.json", versions())
        write_json(path, as_json(config))
    return config, tokenizer


def save_config(workdir: Path, config: Config) -> None:
    """Replaces the config of a workdir in which no other process trains.

    Raises:
        UserError: If one does, or the folder cannot be written.
    """
    with alone(workdir), _writes(workdir):
        write_json(workdir / "config.json", as_json(config))


def as_json(config: Config) -> dict[str, Any]:
    """Returns a config as `config.json` has it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def load_tokenizer(workdir: Path) -> Tokenizer:
    """Loads a workdir's copy; another one, newly trained, would not be the same."""
    folder = workdir / "tokenizer"
    if not folder.exists():
        raise UserError(
            f"no {folder}; is {workdir} a workdir of lm.train? Bring the folder back "
            "from a copy"
        )
    return tokenizers.load(folder)


@contextlib.contextmanager
def _writes(workdir: Path) -> Iterator[None]:
    """Turns what can go wrong while writing into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to the workdir {workdir}: {error.strerror}; choose another "
            "--workdir"
        ) from error


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Makes a workdir and keeps a second run out; the kernel frees it at the end.

    Raises:
        UserError: If another process trains there, or it cannot be written.
    """
    if jax.process_index() != 0:
        yield
        return
    with _writes(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process trains in {workdir}; wait for it, end it, or choose "
                "another --workdir"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def check_vocabulary(config: Config, tokenizer: Tokenizer) -> None:
    """Raises a UserError unless the model has a row for every token."""
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the tokenizer {config.data.tokenizer} has {tokenizer.vocab_size} tokens "
            f"but model.vocab_size is {config.model.vocab_size}; set it to at least "
            f"{tokenizer.vocab_size}"
        )


def check_same(workdir: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises a UserError if two configs differ in what a run may not change."""
    for key, before, after in _differences(old, new):
        if key in MAY_CHANGE or key.split(".")[0] in MAY_CHANGE:
            continue
        raise UserError(
            f"{workdir} was made by another config: {key} is {before!r} there and "
            f"{after!r} here; choose another --workdir, or restore the value"
        )


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Yields the keys in which two configs differ, with their values."""
    before, after = _flat(old), _flat(new)
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield key, before.get(key), after.get(key)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def versions() -> dict[str, Any]:
    """Returns the versions of all that computes, and the devices."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        **found,
        "platform": platform.platform(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
    }


def load_config(workdir: Path) -> Config:
    """Reads the config of a workdir.

    Raises:
        UserError: If there is none, it is broken, or the folder is a checkpoint of
            transformers.
    """
    values = config_lib.read(workdir / "config.json")
    if "model_type" in values or "architectures" in values:
        raise UserError(
            f"{workdir} is a checkpoint of transformers, not a workdir; make one of it "
            "with python -m tools.import_hf"
        )
    return Config.of(values)


def load(workdir: Path, step: int | str = "") -> Loaded:
    """Restores a workdir's model onto all devices, each with a copy.

    Args:
        workdir: Of a run of `lm.train`.
        step: A step's number, `latest` or `best`; "" means the best of a run that has
            `eval.patience`, else the latest.

    Raises:
        UserError: If there is no such workdir or checkpoint.
    """
    config = load_config(workdir)
    tokenizer = load_tokenizer(workdir)
    check_vocabulary(config, tokenizer)
    task = build_task(config.task, tokenizer)
    model = task.build_model(config.model)
    mesh_config = sharding.MeshConfig()
    mesh = sharding.build_mesh(mesh_config)
    params, found = load_params(workdir, config, model, mesh, mesh_config, step)
    return Loaded(config, tokenizer, task, model, params, found)


def save_params(workdir: Path, config: Config, params: Params) -> None:
    """Writes parameters that come from elsewhere as the checkpoint of step 0.

    Another run may begin from it; it lacks what it would take to go on.
    """
    folder = workdir / "checkpoints"
    checkpoints = Checkpoints(folder, config.checkpoint, in_parts=True)
    checkpoints.save(0, {"params": params}, {}, {})
    checkpoints.close()


def load_params(
    workdir: Path,
    config: Config,
    model: nn.Module,
    mesh: Mesh,
    mesh_config: sharding.MeshConfig,
    step: int | str = "",
) -> tuple[Params, int]:
    """Restores a workdir's parameters, laid over a mesh, and tells their step.

    Adapters are merged into the model's parameters.

    Args:
        workdir: Of a run of `lm.train`.
        config: The run's.
        model: Its model, without adapters.
        mesh: Where they go.
        mesh_config: How they are laid over it.
        step: As in `load`.

    Raises:
        UserError: If there is no such checkpoint.
    """
    abstract = placed_params(lora.adapt(model, config.lora), mesh, mesh_config)
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
    averaged = "ema_params" if config.optim.ema_decay else "params"
    step = step or ("best" if config.eval.patience else "latest")
    params, found = checkpoints.restore_params(abstract, step, averaged)
    return lora.merge(params, config.lora), found
