"""Writes a workdir's model so that Hugging Face's transformers load it.

    python -m tools.export_hf --workdir=runs/bbc --output=bbc_hf

    from transformers import AutoModelForSequenceClassification
    model = AutoModelForSequenceClassification.from_pretrained("bbc_hf")

The family is that from which the model was imported; of another model it is one whose
config can say all of it, if there is one. A classifier has to end as those of
transformers: a BERT with `task.pooling=first task.hidden=tanh`, a decoder with
`task.pooling=last task.head_bias=false`.
"""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from lm import cli
from lm.atomic import new_folder, write_json
from lm.config import check_choice

DTYPES = ("float32", "bfloat16", "float16")

parser = cli.make_parser(__doc__)
parser.add_argument("--workdir", required=True, help="the folder of a run")
parser.add_argument("--output", required=True, help="the folder to make")
parser.add_argument("--step", default="", help="latest, best, or a step's number")
parser.add_argument("--family", default="", help="a model_type; default: see above")
parser.add_argument("--dtype", default="float32", help=", ".join(DTYPES))
parser.add_argument("--overwrite", action="store_true", help="replace an export")


def main(args: Namespace) -> dict[str, Any]:
    """Finds the family, and writes the config, the weights and the tokenizer."""
    check_choice("--dtype", args.dtype, DTYPES)

    import jax.numpy as jnp

    from lm.train import workdir as workdir_lib
    from tools.huggingface import companions, configs, params
    from tools.huggingface.files import open_checkpoint, write_checkpoint

    workdir, output = Path(args.workdir), Path(args.output)
    loaded = workdir_lib.load(workdir, args.step)
    original = workdir / "huggingface"
    base: dict[str, Any] = {}
    if (original / "config.json").exists():
        base = json.loads((original / "config.json").read_text())
    family, name = configs.find(loaded, base, args.family)
    values = configs.write(loaded, family, name, base)
    values["dtype" if "torch_dtype" not in values else "torch_dtype"] = args.dtype
    kept = {}
    if any(original.glob("model*.safetensors*")):
        kept = open_checkpoint(original)
    dtype = jnp.dtype(args.dtype)
    # No checkpoint of others has that file, nor has a workdir.
    with new_folder(
        output, args.overwrite, "export.json", "--output", [workdir]
    ) as folder:

        def tensors():
            for key, value in params.write(loaded, family, name):
                yield key, value.astype(dtype)
            for key, tensor in kept.items():
                yield key, tensor.read()

        write_checkpoint(folder, tensors())
        write_json(folder / "config.json", values)
        about = {"workdir": str(workdir.resolve()), "step": loaded.step}
        write_json(folder / "export.json", about | workdir_lib.versions())
        if not companions.give(workdir, loaded, folder):
            cli.say(
                f"the tokenizer, of the kind {loaded.tokenizer.kind}, is not written: "
                "no class of transformers reads it as it was trained"
            )
    print(f"{values['architectures'][0]}, {args.dtype}")
    print(f"wrote {output}")
    return {"output": str(output), "architecture": values["architectures"][0]}


if __name__ == "__main__":
    cli.run(main, parser)
