"""Turns a checkpoint of Hugging Face's transformers into a workdir.

    python -m tools.fetch_data minilm
    python -m tools.import_hf --from=data/minilm --workdir=runs/minilm
    python -m lm.embed --workdir=runs/minilm --text="The weather is lovely today."
    python -m lm.train --config=configs/minilm.py:bbc --workdir=runs/minilm_bbc

A folder has `config.json`, a tokenizer, and the weights in safetensors, whole or in
shards, or in PyTorch's `.bin`, from which no code is run. The model is then evaluated,
exported and written with as one that was trained here; to train it further, begin
another run with it (`init_from`).

| model_type | class | task |
|---|---|---|
| bert, roberta, distilbert, electra, albert | …ForMaskedLM | masked_lm |
| | …ForSequenceClassification | classify |
| | …ForTokenClassification | tag |
| | …ForQuestionAnswering | answer |
| | …Model, and sentence-transformers | rank: vectors of texts |
| gpt2, gpt_neox, llama, mistral, | …ForCausalLM, …LMHeadModel | causal_lm |
| qwen2, qwen3, gemma2, gemma3_text | the same with a chat template | chat |
| t5, mt5 | …ForConditionalGeneration | text_to_text |

A key of `config.json` that may change the numbers and is not supported is an error, as
is a tensor that has no place. Tensors without a use here, such as BERT's pooler, are
named, and kept for `tools.export_hf`.
"""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from lm import cli
from lm.atomic import make_folder, new_folder, write_json
from lm.types import UserError

parser = cli.make_parser(__doc__)
parser.add_argument(
    "--from", dest="source", required=True, help="a folder, or a file of weights"
)
parser.add_argument("--workdir", required=True, help="the folder to make")
parser.add_argument(
    "--tokenizer",
    default="",
    help="a tokenizer's folder or file; default: the source's",
)
parser.add_argument(
    "--plain",
    action="store_true",
    help="continue texts, though there is a chat template",
)
parser.add_argument(
    "--fsdp", type=int, default=1, help="devices that share the parameters; -1: all"
)
parser.add_argument("--overwrite", action="store_true", help="replace a workdir")


def main(args: Namespace) -> dict[str, Any]:
    """Reads the config, then the weights, and makes the workdir."""
    source, workdir = Path(args.source), Path(args.workdir)
    if not source.exists():
        raise UserError(f"no {source}; give a folder that save_pretrained wrote")
    folder = source if source.is_dir() else source.parent
    values = _read_json(folder / "config.json")

    import jax

    from lm.data.pipeline import DataConfig
    from lm.sharding import MeshConfig
    from lm.tasks import build_task
    from lm.text import tokenizers
    from lm.train import workdir as workdir_lib
    from lm.train.config import Config
    from tools.huggingface import chat, configs
    from tools.huggingface import params as params_lib
    from tools.huggingface.files import (
        copy_companions,
        open_checkpoint,
        write_checkpoint,
    )

    tensors = open_checkpoint(source)
    family, name, config = configs.read(values, tensors)
    head = family.heads[name]
    task = head.task({**values, "max_len": config.max_len} | _pooling(folder))
    path = Path(args.tokenizer) if args.tokenizer else folder
    tokenizer = tokenizers.load(path)
    if task.name == "causal_lm" and not args.plain:
        task, tokenizer = chat.choose(folder, path, task, tokenizer)
    run = Config(
        model=config,
        task=task,
        data=DataConfig(sources=(), tokenizer=str(workdir / "tokenizer")),
    )
    workdir_lib.check_vocabulary(run, tokenizer)
    model = build_task(task, tokenizer).build_model(config)
    with new_folder(workdir, args.overwrite, "config.json", "--workdir") as made:
        mesh = MeshConfig(fsdp=args.fsdp, data=1 if args.fsdp == -1 else -1)
        params, kept = params_lib.read(tensors, family, name, config, model, mesh)
        tokenizer.save(made / "tokenizer")
        write_json(made / "config.json", workdir_lib.as_json(run))
        write_json(made / "versions.json", workdir_lib.versions())
        workdir_lib.save_params(made, run, params)
        original = made / "huggingface"
        make_folder(original)
        write_json(original / "config.json", values)
        copy_companions(folder, original)
        if kept:
            pairs = ((key, tensors[key].read()) for key in kept)
            write_checkpoint(original, pairs)
    number = sum(leaf.size for leaf in jax.tree.leaves(params))
    for key, why in kept.items():
        cli.say(f"{key} is kept without use: {why}")
    print(f"{family.model_type} {name}: {number:,} parameters, task {task.name}")
    print(f"wrote {workdir}")
    return {"workdir": str(workdir), "task": task.name, "parameters": number}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no {path}; give a folder that save_pretrained wrote, with config.json"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; fetch it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object; fetch it again")
    return values


def _pooling(folder: Path) -> dict[str, str]:
    """Returns how sentence-transformers pool states, if they are told to."""
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return {}
    values = _read_json(path)
    modes = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "first",
        "pooling_mode_max_tokens": "max",
        "pooling_mode_lasttoken": "last",
    }
    on = [key for key, value in values.items() if key.startswith("pooling") and value]
    if len(on) != 1 or on[0] not in modes:
        raise UserError(
            f"{path} pools by {' and '.join(on) or 'nothing'}, which is not supported; "
            f"supported is one of {', '.join(modes)}"
        )
    return {"pooling": modes[on[0]]}


if __name__ == "__main__":
    cli.run(main, parser)
