"""Compiles MaxText's training step ahead of time; keeps its HLO and its memory.

    .venv-maxtext/bin/python experiments/benchmarks/maxtext_compile.py FOLDER FLAG…

The FLAGs are those of MaxText's `train_compile`. `versus_maxtext.py` runs it, in an
environment of its own.
"""

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path


def main(folder, *flags):
    import jax
    from maxtext.trainers.pre_train import train_compile

    compile_lowered = jax.stages.Lowered.compile
    folder = Path(folder)

    def compile_and_keep(lowered, *args, **kwargs):
        began = time.monotonic()
        compiled = compile_lowered(lowered, *args, **kwargs)
        seconds = time.monotonic() - began
        memory = compiled.memory_analysis()
        kept = {
            "arguments": memory.argument_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
            "compile_seconds": seconds,
        }
        (folder / "step.txt").write_text(compiled.as_text())
        (folder / "memory.json").write_text(json.dumps(kept))
        return compiled

    jax.stages.Lowered.compile = compile_and_keep
    base = Path(find_spec("maxtext").submodule_search_locations[0], "configs/base.yml")
    train_compile.main(["train_compile", str(base), *flags])


if __name__ == "__main__":
    main(*sys.argv[1:])
