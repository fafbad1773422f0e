"""XLA's flags for each accelerator, and what else the field does for speed there.

    python -m lm.xla_flags                       # of this machine
    python -m lm.xla_flags --accelerator=v6e     # of another

`FLAGS` is the one table: name, value, where, why and who publishes it. `lm.train` puts
those of its machine into `LIBTPU_INIT_ARGS` (TPU) or `XLA_FLAGS` (GPU, CPU) before JAX
starts. A flag that either variable already has stays as it is, and one that the
installed jaxlib or libtpu does not know is left out, as XLA ends a process that names
it. Nothing in the table changes what is computed, but for rounding. Each row is taken
from its source, which measured it; timed here are `xla_gpu_triton_gemm_any` (1% less of
GPT-2's and BERT's steps on an H200) and the CPU's alone.

What is not a flag:

- Attention. `model.attention=auto` takes Splash on TPUs and cuDNN's flash attention on
  GPUs (Dao 2023, https://arxiv.org/abs/2307.08691), where the options allow: cuDNN
  asks for bfloat16, a `head_dim` that is a multiple of 8 up to 128, no soft-cap and
  `attention_dropout_rate=0`; Splash for lengths that are multiples of 128 and no
  dropout of attention. XLA's own needs memory that is quadratic in the length.
- Recomputation, `model.remat`, the least memory first: `full` keeps the input of each
  layer (Chen et al. 2016, https://arxiv.org/abs/1604.06174) and takes a third more
  FLOPs; `attention` also what attention returns (MaxText's `context`), so that its
  kernel runs once; `dots_no_batch` what matmuls with parameters make (MaxText's
  `minimal`; Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198, section 5);
  `dots_attention` both (MaxText's `minimal_with_context`); `dots` also the scores of
  attention, where XLA computes them; `none` all. The last that fits is the fastest;
  `tools.plan --search` tries them.
- `CUDA_DEVICE_MAX_CONNECTIONS=1` on several Hopper GPUs, for overlap; on Blackwell it
  is slower (JAX-Toolbox, docs/GPU_performance.md). It is CUDA's: export it yourself.
"""

import importlib.util
import mmap
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm import cli
from lm.types import UserError

_MAXTEXT = "MaxText, benchmarks/xla_flags_library.py"
_TOOLBOX = "JAX-Toolbox, docs/GPU_performance.md"
_TOOLBOX_MAXTEXT = "JAX-Toolbox, docs/frameworks/maxtext/README.md"
_JAX_GPU = "https://docs.jax.dev/en/latest/gpu_performance_tips.html"
_RECIPES = "AI-Hypercomputer/tpu-recipes, training/ironwood/llama3.1-70b"

TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
GPUS = ("ampere", "ada", "hopper", "blackwell", "gpu")
ACCELERATORS = (*TPUS, *GPUS, "cpu")


@dataclass(frozen=True)
class Flag:
    """A row of the table.

    Attributes:
        name: Without the dashes.
        value: What it is set to.
        where: The accelerators that it is for.
        why: What it does.
        source: Who publishes or measured it.
        several: Whether it is of use to several devices alone.
    """

    name: str
    value: str
    where: tuple[str, ...]
    why: str
    source: str
    several: bool = False

    def __str__(self) -> str:
        return f"--{self.name}={self.value}"


# libtpu 0.0.52 refuses to fuse collectives on v5p and v6e, which MaxText once did.
_FUSED = ("v5e",)
_SLICED = ("v5e", "v5p", "v6e")

FLAGS = (
    Flag(
        "xla_enable_async_all_gather",
        "true",
        TPUS,
        "all-gathers run beside computation",
        _MAXTEXT,
    ),
    Flag(
        "xla_tpu_enable_async_collective_fusion",
        "true",
        _FUSED,
        "collectives are fused with the computation scheduled beside them",
        _MAXTEXT,
    ),
    Flag(
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
        "true",
        _FUSED,
        "the same of all-gathers, which FSDP is made of",
        _MAXTEXT,
    ),
    Flag(
        "xla_tpu_enable_async_collective_fusion_multiple_steps",
        "true",
        _FUSED,
        "a collective may go on through several fusions",
        _MAXTEXT,
    ),
    Flag(
        "xla_tpu_overlap_compute_collective_tc",
        "true",
        _FUSED,
        "computation and communication overlap on one tensor core",
        _MAXTEXT,
    ),
    Flag(
        "xla_tpu_enable_data_parallel_all_reduce_opt",
        "true",
        _SLICED,
        "better all-reduces of data parallelism between slices",
        _MAXTEXT,
    ),
    Flag(
        "xla_tpu_data_parallel_opt_different_sized_ops",
        "true",
        _SLICED,
        "they are pipelined over iterations, also of different sizes",
        _MAXTEXT,
    ),
    Flag(
        "xla_tpu_scoped_vmem_limit_kib",
        "98304",
        ("v6e",),
        "more VMEM for the operation that runs, less for prefetching the next",
        _MAXTEXT,
    ),
    Flag(
        "xla_tpu_scoped_vmem_limit_kib",
        "61440",
        ("tpu7x",),
        "more VMEM for the operation that runs, less for prefetching the next",
        _RECIPES,
    ),
    Flag(
        "xla_tpu_enable_sparse_core_collective_offload_all_reduce",
        "true",
        ("tpu7x",),
        "sparse cores do all-reduces while tensor cores compute",
        _RECIPES,
    ),
    Flag(
        "xla_gpu_enable_latency_hiding_scheduler",
        "true",
        GPUS,
        "communication is scheduled beside computation",
        _TOOLBOX,
        several=True,
    ),
    *(
        Flag(
            f"xla_gpu_enable_pipelined_{collective}",
            "true",
            GPUS,
            "a layer's run beside the computation of the layer next to it in the scan",
            _TOOLBOX,
            several=True,
        )
        for collective in ("all_gather", "reduce_scatter", "all_reduce")
    ),
    *(
        Flag(
            f"xla_gpu_{collective}_combine_threshold_bytes",
            size,
            GPUS,
            "a layer's parameters travel together, which takes the links' bandwidth",
            _TOOLBOX_MAXTEXT,
            several=True,
        )
        for collective, size in (
            ("all_gather", "1073741824"),
            ("reduce_scatter", "134217728"),
            ("all_reduce", "1073741824"),
        )
    ),
    *(
        Flag(
            f"xla_gpu_enable_{collective}_combine_by_dim",
            "false",
            GPUS,
            "also those that are split along other axes",
            _TOOLBOX_MAXTEXT,
            several=True,
        )
        for collective in ("all_gather", "reduce_scatter")
    ),
    Flag(
        "xla_gpu_enable_while_loop_double_buffering",
        "true",
        GPUS,
        "the scan's body is unrolled twice, so that what is pipelined needs no copy",
        _TOOLBOX,
        several=True,
    ),
    Flag(
        "xla_gpu_triton_gemm_any",
        "true",
        GPUS,
        "Triton's matmuls are candidates beside cuBLAS's, fused with what is around",
        _JAX_GPU,
    ),
    Flag(
        "xla_gpu_enable_command_buffer",
        "FUSION,CUSTOM_CALL",
        ("blackwell",),
        "CUDA graphs of these alone: less launch latency",
        _TOOLBOX,
    ),
    Flag(
        "xla_cpu_enable_concurrency_optimized_scheduler",
        "false",
        ("cpu",),
        "no two devices wait for each other in different collectives, for good: eight "
        "stages on two busy cores did in 8 of 9 runs, and with it in none of 8",
        "measured here, tests/train/test_pipelined_steps.py",
        several=True,
    ),
)


def table(accelerator: str, devices: int = 0) -> list[Flag]:
    """Returns the rows of one accelerator.

    Args:
        accelerator: One of `ACCELERATORS`.
        devices: How many take part, 0 if that is not known; alone, what is about
            communication is left out.

    Raises:
        UserError: If there is no such accelerator.
    """
    if accelerator not in ACCELERATORS:
        raise UserError(
            f"no accelerator {accelerator!r}{cli.suggest(accelerator, ACCELERATORS)}"
        )
    return [
        flag
        for flag in FLAGS
        if accelerator in flag.where and (devices != 1 or not flag.several)
    ]


def variable(accelerator: str) -> str:
    """Returns the name of the environment variable that takes the flags."""
    return "LIBTPU_INIT_ARGS" if accelerator in TPUS else "XLA_FLAGS"


# Google's number on the PCI bus and those of its TPUs: jax/_src/hardware_utils.py of
# https://github.com/jax-ml/jax.
_GOOGLE = "0x1ae0"
_TPU_DEVICES = {
    "0x005e": "v4",
    "0x0062": "v5p",
    "0x0063": "v5e",
    "0x006f": "v6e",
    "0x0076": "tpu7x",
}
_GPU_MODELS = (
    (r"\b(B200|B300|GB200|GB300|B100)\b", "blackwell"),
    (r"\b(H100|H200|H20|GH200)\b", "hopper"),
    (r"\b(L4|L40S?)\b", "ada"),
    (r"\bA(100|30|10G?|40)\b", "ampere"),
)


def accelerator_here(
    environ: MutableMapping[str, str] = os.environ, root: Path = Path("/")
) -> tuple[str, int]:
    """Returns what JAX will start on, and how many are here; `("cpu", 0)` otherwise.

    Before JAX starts there is none to ask: the system's files tell, and
    `JAX_PLATFORMS`, which may rule out what is there.

    Args:
        environ: The environment.
        root: Where the system's files are.
    """
    wanted = environ.get("JAX_PLATFORMS", "").lower()
    first = wanted.split(",")[0]
    if first in ("", "tpu") and importlib.util.find_spec("libtpu"):
        tpus = [
            _TPU_DEVICES.get(vendor.with_name("device").read_text().strip())
            for vendor in root.glob("sys/bus/pci/devices/*/vendor")
            if vendor.read_text().strip() == _GOOGLE
        ]
        if name := next(filter(None, tpus), None):
            return name, tpus.count(name)
    if first in ("", "cuda", "gpu"):
        models = [
            line.partition(":")[2]
            for file in root.glob("proc/driver/nvidia/gpus/*/information")
            for line in file.read_text().splitlines()
            if line.startswith("Model")
        ]
        if models and importlib.util.find_spec("jax_plugins"):
            for pattern, name in _GPU_MODELS:
                if re.search(pattern, models[0]):
                    return name, len(models)
            return "gpu", len(models)
    return "cpu", 0


def library(accelerator: str) -> Path | None:
    """Returns the file that reads the accelerator's flags; None if it is not here."""
    package = "libtpu" if accelerator in TPUS else "jaxlib"
    file = "libtpu.so" if accelerator in TPUS else "libjax_common.so"
    spec = importlib.util.find_spec(package)
    # tools.plan's libtpu is apart from other packages.
    apart = Path(sys.prefix, package)
    for folder in (
        *((spec and spec.submodule_search_locations) or ()),
        apart / package,
    ):
        if Path(folder, file).exists():
            return Path(folder, file)
    return None


def known(names: Iterable[str], file: Path | None) -> set[str]:
    """Returns the names that are flags of a library.

    A flag's name is a string of the library, ended by a zero byte. That of a flag which
    was removed stays in the description of its protocol buffer, without one.
    """
    if file is None:
        return set()
    with (
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return {name for name in names if data.find(name.encode() + b"\0") >= 0}


def merged(given: str, flags: Iterable[Flag]) -> str:
    """Returns what is given, and the flags that it does not set.

    >>> flags = [Flag(name, "1", (), "", "") for name in ("xla_a", "xla_b")]
    >>> merged("--xla_a=2", flags)
    '--xla_a=2 --xla_b=1'
    """
    if given.strip() and not given.lstrip().startswith("-"):
        return given  # the name of a file that has the flags
    taken = {word.lstrip("-").partition("=")[0] for word in given.split()}
    taken |= {name.removeprefix("no") for name in taken}
    added = [str(flag) for flag in flags if flag.name not in taken]
    return " ".join([*given.split(), *added])


def apply(
    environ: MutableMapping[str, str] = os.environ,
    accelerator: str = "",
    devices: int = 0,
) -> None:
    """Puts the accelerator's flags into the environment, before JAX starts.

    Args:
        environ: The environment that is changed.
        accelerator: One of `ACCELERATORS`; what is here if not given.
        devices: How many take part; all of the job's if not given.
    """
    if not accelerator:
        accelerator, here = accelerator_here(environ)
        devices = devices or here * int(environ.get("SLURM_NTASKS", "1"))
    flags = table(accelerator, devices)
    names = known((flag.name for flag in flags), library(accelerator))
    added = [flag for flag in flags if flag.name in names]
    if added:
        key = variable(accelerator)
        environ[key] = merged(environ.get(key, ""), added)


parser = cli.make_parser(__doc__)
parser.add_argument(
    "--accelerator", default="", help=f"one of {', '.join(ACCELERATORS)}"
)


def main(args: Namespace) -> dict[str, Any]:
    """Prints the table of one accelerator."""
    here, devices = accelerator_here()
    name = args.accelerator or here
    flags = table(name, 0 if args.accelerator else devices)
    file = library(name)
    names = known((flag.name for flag in flags), file)
    rows = []
    print(f"{variable(name)} of {name}:")
    for flag in flags:
        is_known = flag.name in names if file else None
        unknown = "" if is_known in (True, None) else " (not known here: left out)"
        print(f"  {flag}{unknown}\n      {flag.why}; {flag.source}")
        row = {"flag": str(flag), "known": is_known}
        rows.append(row | {"why": flag.why, "source": flag.source})
    if file is None:
        print("its library is not here, so nobody knows which of these it has")
    return {"accelerator": name, "variable": variable(name), "flags": rows}


if __name__ == "__main__":
    cli.run(main, parser)
