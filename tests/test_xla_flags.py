"""The table of XLA's flags: what XLA knows, what users have set, and what is here."""

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lm import xla_flags
from lm.train import __main__ as train
from lm.types import UserError
from lm.xla_flags import Flag

FLAGS = [Flag("xla_a", "1", (), "", ""), Flag("xla_b", "1", (), "", "")]


def starts(flags):
    """Returns whether XLA starts in a process with these flags."""
    program = "import jaxlib.xla_client as xla; xla.make_cpu_client()"
    env = os.environ | {"XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return not subprocess.run([sys.executable, "-c", program], env=env).returncode


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of files, which has the packages of every accelerator."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: SimpleNamespace())
    return tmp_path


def put_tpus(root, device, number):
    for i in range(number):
        write(root / f"sys/bus/pci/devices/{i}/vendor", "0x1ae0\n")
        write(root / f"sys/bus/pci/devices/{i}/device", f"{device}\n")
    write(root / "sys/bus/pci/devices/network/vendor", "0x1af4\n")


def put_gpus(root, model, number):
    for i in range(number):
        path = root / f"proc/driver/nvidia/gpus/{i}/information"
        write(path, f"Model: \t\t {model}\nIRQ: 1\n")


def test_xla_starts_with_what_it_is_said_to_know_and_with_no_other():
    names = {flag.name for kind in xla_flags.GPUS for flag in xla_flags.table(kind)}
    removed = "xla_gpu_enable_async_collectives"
    library = xla_flags.library("hopper")
    known = xla_flags.known({*names, removed, "xla_gpu_no_such"}, library)
    assert known == names
    every = {str(f): f for kind in xla_flags.GPUS for f in xla_flags.table(kind)}
    assert starts(" ".join(every))
    assert not starts(f"--{removed}=true")


@pytest.mark.parametrize("accelerator", xla_flags.ACCELERATORS)
def test_every_row_is_one_flag_with_a_reason_and_a_source(accelerator):
    flags = xla_flags.table(accelerator)
    names = [flag.name for flag in flags]
    assert flags and len(set(names)) == len(names)
    assert all(flag.why and flag.source for flag in flags)
    groups = {"gpu": xla_flags.GPUS, "tpu": xla_flags.TPUS, "cpu": ("cpu",)}
    (kind,) = [kind for kind, group in groups.items() if accelerator in group]
    assert all(name.startswith((f"xla_{kind}", "xla_enable")) for name in names)


@pytest.mark.parametrize(
    "given, merged",
    [
        ("", "--xla_a=1 --xla_b=1"),
        ("--xla_a=0", "--xla_a=0 --xla_b=1"),
        (" --xla_b  --other=--xla_a", "--xla_b --other=--xla_a --xla_a=1"),
        ("--noxla_a", "--noxla_a --xla_b=1"),
        ("flags.txt", "flags.txt"),  # XLA reads them from that file
    ],
)
def test_what_users_set_stays(given, merged):
    assert xla_flags.merged(given, FLAGS) == merged


@pytest.mark.parametrize(
    "device, name", [("0x0063", "v5e"), ("0x006f", "v6e"), ("0x0062", "v5p")]
)
def test_tpus_are_told_before_jax_starts(machine, device, name):
    put_tpus(machine, device, 4)
    assert xla_flags.accelerator_here({}, machine) == (name, 4)
    env = {"JAX_PLATFORMS": "tpu,cpu"}
    assert xla_flags.accelerator_here(env, machine) == (name, 4)
    env = {"JAX_PLATFORMS": "cpu"}
    assert xla_flags.accelerator_here(env, machine) == ("cpu", 0)


@pytest.mark.parametrize(
    "model, name",
    [
        ("NVIDIA H100 80GB HBM3", "hopper"),
        ("NVIDIA H200", "hopper"),
        ("NVIDIA B200", "blackwell"),
        ("NVIDIA A100-SXM4-80GB", "ampere"),
        ("NVIDIA L4", "ada"),
        ("Tesla T4", "gpu"),
    ],
)
def test_gpus_are_told_before_jax_starts(machine, model, name):
    put_gpus(machine, model, 8)
    assert xla_flags.accelerator_here({}, machine) == (name, 8)
    env = {"JAX_PLATFORMS": "cuda,cpu"}
    assert xla_flags.accelerator_here(env, machine) == (name, 8)


def test_a_chip_without_the_package_that_drives_it_is_none(tmp_path, monkeypatch):
    put_tpus(tmp_path, "0x0063", 1)
    put_gpus(tmp_path, "NVIDIA H100", 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert xla_flags.accelerator_here({}, tmp_path) == ("cpu", 0)


def test_flags_are_applied_but_for_those_that_xla_lacks(monkeypatch):
    unknown = Flag("xla_gpu_no_such", "1", ("hopper",), "", "")
    monkeypatch.setattr(xla_flags, "FLAGS", (*xla_flags.FLAGS, unknown))
    key = "--xla_gpu_enable_latency_hiding_scheduler"
    env = {"XLA_FLAGS": f"{key}=false"}
    xla_flags.apply(env, "hopper")
    words = env["XLA_FLAGS"].split()
    assert f"{key}=false" in words and f"{key}=true" not in words
    assert "--xla_gpu_enable_pipelined_all_gather=true" in words
    assert "no_such" not in env["XLA_FLAGS"]
    xla_flags.apply(env, "hopper")
    assert env["XLA_FLAGS"].split() == words
    assert "LIBTPU_INIT_ARGS" not in env


def test_one_device_gets_nothing_about_communication():
    env = {}
    xla_flags.apply(env, "hopper", devices=1)
    assert env == {"XLA_FLAGS": "--xla_gpu_triton_gemm_any=true"}


def test_a_tpu_gets_those_that_its_libtpu_has(tmp_path, monkeypatch):
    (tmp_path / "libtpu.so").write_bytes(
        b"\0xla_tpu_scoped_vmem_limit_kib\0 xla_enable_async_all_gather in a sentence"
    )
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    env = {}
    xla_flags.apply(env, "v6e")
    assert env == {"LIBTPU_INIT_ARGS": "--xla_tpu_scoped_vmem_limit_kib=98304"}


def test_a_cpu_gets_what_keeps_its_collectives_in_order():
    env = {"JAX_PLATFORMS": "cpu"}
    xla_flags.apply(env)
    (flag,) = xla_flags.table("cpu")
    assert env == {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": str(flag)}


def test_the_table_is_printed(capsys):
    args = xla_flags.parser.parse_args(["--accelerator=hopper"])
    result = xla_flags.main(args)
    assert result["variable"] == "XLA_FLAGS"
    assert all(row["known"] for row in result["flags"])
    printed = capsys.readouterr().out
    assert all(row["flag"] in printed for row in result["flags"])
    with pytest.raises(UserError, match="did you mean 'hopper'"):
        xla_flags.table("hoper")


def test_a_workdir_that_is_no_folder_is_refused():
    flags = ["--config=configs/gpt_tiny.py", "--workdir=gs://bucket/run"]
    with pytest.raises(UserError, match="gs://bucket/run is no folder; mount"):
        train.main(train.parser.parse_args(flags), [])
