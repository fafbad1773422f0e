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
| | …ForSequenceClassification, …ForTokenClassification | classify, tag |
| t5, mt5 | …ForConditionalGeneration | text_to_text |

A key of `config.json` that may change the numbers and is not supported is an error, as
is a tensor that has no place. Tensors without a use here, such as BERT's pooler, are
named, and kept for `tools.export_hf`.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

from lm import cli
from lm.atomic import new_folder, write_json
from lm.config import check_range
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
    "--length",
    type=int,
    default=0,
    help="tokens of the longest text; default: what the model reads, at most 2,048",
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
    folder, source, workdir = *_source(args.source), Path(args.workdir)

    import jax

    from lm.data.pipeline import DataConfig
    from lm.models import gpt
    from lm.sharding import MeshConfig
    from lm.tasks import build_task
    from lm.text import tokenizers
    from lm.train import workdir as workdir_lib
    from lm.train.config import Config
    from tools.huggingface import chat, companions, configs
    from tools.huggingface import params as params_lib
    from tools.huggingface.families.common import vectors
    from tools.huggingface.files import open_checkpoint, write_checkpoint

    values = companions.read_json(folder / "config.json")
    tensors = open_checkpoint(source)
    family, name, config = configs.read(values, tensors)
    head = family.heads[name]
    settings = {"max_len": config.max_len}
    if head.task is vectors:
        settings |= companions.read_sentences(folder)
    if args.length:
        check_range("--length", args.length, 8, config.max_len + 1)
        settings["length"] = args.length
    task = head.task({**values, **settings})
    path = Path(args.tokenizer) if args.tokenizer else folder
    tokenizer = _load_tokenizer(path, config.vocab_size)
    if head.wraps and family.model is gpt.Config:
        tokenizer = tokenizers.load(path, companions.marks_around(path))
    if task.name == "causal_lm" and not args.plain:
        task, tokenizer = chat.choose(folder, path, task, tokenizer)
    run = Config(
        model=config,
        task=task,
        data=DataConfig(sources=(), tokenizer=str(workdir / "tokenizer")),
    )
    model = build_task(task, tokenizer).build_model(config)
    sources = (source, path)
    # No run of `lm.train` has that folder, nor has a checkpoint.
    with new_folder(
        workdir, args.overwrite, "huggingface", "--workdir", sources
    ) as made:
        mesh = MeshConfig(fsdp=args.fsdp, data=1 if args.fsdp == -1 else -1)
        params, kept = params_lib.read(tensors, family, name, config, model, mesh)
        tokenizer.save(made / "tokenizer")
        write_json(made / "config.json", workdir_lib.as_json(run))
        write_json(made / "versions.json", workdir_lib.versions())
        workdir_lib.save_params(made, run, params)
        original = made / "huggingface"
        companions.keep(folder, path, original)
        write_json(original / "config.json", values)
        if kept:
            pairs = ((key, tensors[key].read()) for key in kept)
            write_checkpoint(original, pairs)
    number = sum(leaf.size for leaf in jax.tree.leaves(params))
    for key, why in kept.items():
        cli.say(f"{key} is kept without use: {why}")
    print(f"{family.model_type} {name}: {number:,} parameters, task {task.name}")
    print(f"wrote {workdir}")
    return {"workdir": str(workdir), "task": task.name, "parameters": number}


def _source(given: str) -> tuple[Path, Path]:
    """Returns the folder of a checkpoint, and what holds its weights."""
    source = Path(given)
    if not given or not source.exists():
        raise UserError(
            f"--from={given} is no folder or file; give a folder that save_pretrained "
            "wrote (what a hub has under a name is not fetched from here)"
        )
    if source.name == "config.json":
        raise UserError(f"--from={given} holds no weights; name its folder")
    return (source if source.is_dir() else source.parent), source


def _load_tokenizer(path: Path, vocab_size: int) -> Any:
    """Opens a tokenizer for a model with so many tokens."""
    from lm.text import tokenizers

    cure = "fetch it again, or name another with --tokenizer"
    tokenizer = tokenizers.load(path, cure=cure)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer of {path} has {tokenizer.vocab_size} tokens but by "
            f"config.json vocab_size is {vocab_size}; they do not belong together: "
            f"{cure}"
        )
    return tokenizer


if __name__ == "__main__":
    cli.run(main, parser)
