"""What a compiled program does, read from the text of its optimised HLO.

XLA's own cost analysis counts the body of a loop once, whose layers a scan repeats.
Here everything is counted as often as it runs: a program is walked from its entry,
and what is in a loop counts for each of its trips.

On a TPU each fusion carries an estimate of its cycles. It is of the core's arithmetic
and of its memory; it knows nothing of Pallas kernels, nor of collectives.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all"),
    *("ragged-all-to-all", "collective-permute", "collective-broadcast"),
)

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[ )])([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation"
    r"|branch_computations|called_computations)=(\{[^}]*\}|%[\w.\-]+)"
)
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclass(frozen=True)
class Shape:
    """An array's type."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its numbers."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Its memory, without padding."""
        bits = {"pred": 8, "token": 0}.get(self.dtype)
        if bits is None:
            found = re.search(r"\d+", self.dtype)
            bits = int(found[0]) if found else 0
        return self.size * bits / 8


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: Its own.
        opcode: What it does.
        shapes: Of its result; several of a tuple.
        operands: Names of other instructions.
        inside: The text between the parentheses, such as a constant's value.
        rest: The text after them.
        is_root: Whether it is what the computation returns.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    inside: str
    rest: str
    is_root: bool

    def attribute(self, name: str) -> str:
        """Returns an attribute's text, "" where it is missing."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.rest)
        return found[1] if found else ""

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """The computations that it names."""
        parts = (part.strip("{}") for part in _CALLED.findall(self.rest))
        return tuple(n.strip().lstrip("%") for p in parts for n in p.split(",") if n)

    @property
    def source(self) -> str:
        """The operation of JAX's that it was made of."""
        found = _SOURCE.search(self.rest)
        return found[1] if found else self.name


Computation = Mapping[str, Instruction]


@dataclass
class Kernel:
    """Calls of one Pallas kernel.

    Attributes:
        calls: How many.
        shapes: Of the operands of one call.
    """

    calls: float = 0.0
    shapes: tuple[Shape, ...] = ()


@dataclass
class Moved:
    """Collectives of one kind.

    Attributes:
        calls: How many.
        bytes: Of the whole arrays: what is gathered, summed or sent; of a
            reduce-scatter, what it begins with.
        wire: The least that a device must send of them.
    """

    calls: float = 0.0
    bytes: float = 0.0
    wire: float = 0.0


@dataclass
class Cost:
    """What one device does in one run of a program.

    Attributes:
        flops: Of matmuls and convolutions.
        collectives: By kind.
        kernels: By name.
        sources: Bytes of collectives by kind and the operation they were made of.
        cycles_of: The compiler's estimates by the operation that a fusion was made of,
            without kernels and collectives.
        endless: Loops whose trips are not known, counted once.
    """

    flops: float = 0.0
    collectives: dict[str, Moved] = field(default_factory=dict)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    sources: dict[tuple[str, str], float] = field(default_factory=dict)
    cycles_of: dict[str, float] = field(default_factory=dict)
    endless: int = 0

    @property
    def cycles(self) -> float:
        """The compiler's estimates of all operations."""
        return sum(self.cycles_of.values())


def cost(text: str) -> Cost:
    """Returns what a program of this HLO does, loops counted for each trip."""
    computations, entry = parse(text)
    total = Cost()
    _walk(computations, entry, 1.0, total, None, set())
    return total


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns the computations by name, and the name of the entry."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _instruction(line)):
            current[found.name] = found
    return dict(computations), entry or next(reversed(computations), "")


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    opcode = match and _OPCODE.search(match[3])
    if not match or not opcode:
        return None
    text = match[3]
    end = _closing(text, opcode.end())
    inside = text[opcode.end() : end]
    return Instruction(
        match[2],
        opcode[1],
        tuple(_shapes(text[: opcode.start()])),
        tuple(_NAME.findall(inside)),
        inside,
        text[end + 1 :],
        bool(match[1]),
    )


def _closing(text: str, start: int) -> int:
    """Returns where the parenthesis closes that was opened before `start`."""
    depth = 1
    for place in re.finditer(r"[()]", text[start:]):
        depth += 1 if place[0] == "(" else -1
        if not depth:
            return start + place.start()
    return len(text)


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, dims in _ARRAY.findall(text):
        yield Shape(dtype, tuple(int(n) for n in dims.split(",") if n))


def _walk(
    computations: Mapping[str, Computation],
    name: str,
    times: float,
    total: Cost,
    fusion: Instruction | None,
    seen: set[str],
) -> None:
    """Adds what a computation does in so many runs.

    Args:
        computations: By name.
        name: Of the one.
        times: How often it runs.
        total: What is added to.
        fusion: That it is inside of, if it is.
        seen: Channels of the collectives that fusions have had. One that goes on while
            other things are computed is in each of their fusions, and in the loops
            between them.
    """
    computation = computations.get(name, {})
    for instruction in computation.values():
        opcode = instruction.opcode
        kind = opcode.removesuffix("-start")
        if found := _CYCLES.search(instruction.rest):
            source, cycles = instruction.source, times * int(found[1])
            total.cycles_of[source] = total.cycles_of.get(source, 0.0) + cycles
        if opcode == "while":
            trips = trip_count(computations, computation, instruction)
            total.endless += trips is None
            body = instruction.attribute("body").lstrip("%")
            often = times * (1 if trips is None else trips)
            _walk(computations, body, often, total, None, set(seen))
        elif kind in COLLECTIVES:
            channel = instruction.attribute("channel_id")
            if fusion is None or not channel or channel not in seen:
                _collect(instruction, kind, times, total)
            if fusion is not None:
                seen.add(channel)
        elif opcode in ("dot", "convolution"):
            total.flops += times * _flops(computation, instruction)
        elif opcode == "custom-call":
            _call_kernel(computation, instruction, times, total)
        elif opcode == "fusion" and _is_reduce_scatter(instruction):
            for inner in computations.get(instruction.called[0], {}).values():
                if inner.opcode.removesuffix("-start") == "all-reduce":
                    _collect(inner, "reduce-scatter", times, total)
        elif opcode in ("fusion", "call", "conditional", "async-start"):
            inside = instruction if opcode == "fusion" else fusion
            for other in instruction.called:
                _walk(computations, other, times, total, inside, seen)


def _is_reduce_scatter(fusion: Instruction) -> bool:
    """Returns whether it is what a TPU makes of an all-reduce that is then cut."""
    return any(name.startswith("all-reduce-scatter") for name in fusion.called)


def _collect(instruction: Instruction, kind: str, times: float, total: Cost) -> None:
    shapes = instruction.shapes
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # The state of one that has begun: operands, results, and then counters.
        arrays = [shape for shape in shapes if shape.dims or shape.dtype != "u32"]
        shapes = arrays[len(arrays) // 2 :]
    size = sum(shape.bytes for shape in shapes)
    members = _group_size(instruction)
    if kind == "reduce-scatter" and instruction.opcode.startswith(kind):
        size *= members or 1  # its result is a part of what it begins with
    share = 1.0 if kind == "collective-permute" else 1 - 1 / members if members else 1.0
    moved = total.collectives.setdefault(kind, Moved())
    moved.calls += times
    moved.bytes += times * size
    moved.wire += times * size * share * (2 if kind == "all-reduce" else 1)
    source = kind, instruction.source
    total.sources[source] = total.sources.get(source, 0.0) + times * size


def _group_size(instruction: Instruction) -> int:
    """Returns the devices of each group, 0 if it does not say."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", instruction.rest):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", instruction.rest):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", instruction.rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes.get(name, 1)) for name, part in axes)
    return 0


def _call_kernel(
    computation: Computation, call: Instruction, times: float, total: Cost
) -> None:
    target = _TARGET.search(call.rest)
    if not target or target[1] != "tpu_custom_call":
        return
    named = re.search(r'"?kernel_name"?[=:]\s*"([^"]+)"', call.rest)
    name = named[1] if named else re.sub(r"\.\d+$", "", call.name)
    operands = (computation[o] for o in call.operands if o in computation)
    kernel = total.kernels.setdefault(name, Kernel())
    kernel.calls += times
    kernel.shapes = tuple(shape for o in operands for shape in o.shapes)


# --- Trips --------------------------------------------------------------------------


def trip_count(
    computations: Mapping[str, Computation], caller: Computation, loop: Instruction
) -> int | None:
    """Returns how often a loop's body runs, None if the text does not say.

    A loop that may end earlier, as one that writes text does, counts to its limit.
    """
    if found := _TRIPS.search(loop.rest):
        return int(found[1])
    condition = computations.get(loop.attribute("condition").lstrip("%"), {})
    limits = _constants(computations, condition)
    if not limits:
        return None
    limit = max(limits)
    first, step = 0, 1
    counters = [i for i in condition.values() if i.opcode == "get-tuple-element"]
    scalars = [i for i in counters if i.shapes and i.shapes[0].dims == ()]
    if len(scalars) == 1:
        index = int(scalars[0].attribute("index"))
        first = _initial(caller, loop, index)
        body = computations.get(loop.attribute("body").lstrip("%"), {})
        step = _step(computations, body, index)
    is_inclusive = any("direction=LE" in i.rest for i in _all(computations, condition))
    return max(0, -(-(limit + is_inclusive - first) // step))


def _all(
    computations: Mapping[str, Computation], computation: Computation
) -> Iterator[Instruction]:
    """Yields the instructions of a computation and of those it calls."""
    for instruction in computation.values():
        yield instruction
        for name in instruction.called:
            yield from _all(computations, computations.get(name, {}))


def _value(instruction: Instruction | None) -> int | None:
    """Returns what an integer constant is, None of all else."""
    if instruction is None or instruction.opcode != "constant":
        return None
    return int(instruction.inside) if instruction.inside.lstrip("-").isdigit() else None


def _constants(
    computations: Mapping[str, Computation], computation: Computation
) -> list[int]:
    values = (_value(i) for i in _all(computations, computation))
    return [value for value in values if value is not None]


def _initial(caller: Computation, loop: Instruction, index: int) -> int:
    """Returns a counter's first value, 0 where it is not written down."""
    state = caller.get(loop.operands[0]) if loop.operands else None
    if state is None or state.opcode != "tuple" or index >= len(state.operands):
        return 0
    first = caller.get(state.operands[index])
    while first is not None and first.opcode in ("copy", "bitcast") and first.operands:
        first = caller.get(first.operands[0])
    return _value(first) or 0


def _step(
    computations: Mapping[str, Computation], body: Computation, index: int
) -> int:
    """Returns by how much a counter rises, 1 where it is not written down."""
    root = next((i for i in body.values() if i.is_root), None)
    if root is None or root.opcode != "tuple" or index >= len(root.operands):
        return 1
    next_value = body.get(root.operands[index])
    if next_value is None or next_value.opcode not in ("add", "fusion"):
        return 1
    values = [_value(body.get(name)) for name in next_value.operands]
    for name in next_value.called:
        inner = computations.get(name, {})
        if any(i.opcode != "add" for i in inner.values() if i.is_root):
            return 1
        values += _constants(computations, inner)
    return next((value for value in values if value and value > 0), 1)


# --- FLOPs --------------------------------------------------------------------------


def _flops(computation: Computation, instruction: Instruction) -> float:
    """Returns 2 for each product that a matmul or convolution adds up."""
    operands = [computation.get(name) for name in instruction.operands[:2]]
    if len(operands) < 2 or operands[0] is None or operands[1] is None:
        return 0.0
    left, right = operands[0].shapes[0], operands[1].shapes[0]
    result = instruction.shapes[0]
    if instruction.opcode == "dot":
        axes = instruction.attribute("lhs_contracting_dims").strip("{}")
        return (
            2.0
            * result.size
            * math.prod(left.dims[int(axis)] for axis in axes.split(",") if axis)
        )
    return _convolution_flops(instruction, left, right, result)


def _convolution_flops(
    instruction: Instruction, left: Shape, right: Shape, result: Shape
) -> float:
    """As XLA's HloCostAnalysis: products with padding are none.

    A TPU's batched matmul is a convolution whose window slides over the batch, and
    meets something else than padding at one place only.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    if not labels:
        return 0.0
    inputs, kernel, output = labels[1], labels[2], labels[3]
    window = _window(instruction.attribute("window").strip("{}"))
    products = 1.0
    for letter in filter(str.isdigit, output):
        size, reach, made = (
            shape.dims[names.index(letter)]
            for shape, names in ((left, inputs), (right, kernel), (result, output))
        )
        products *= _valid_pairs(size, reach, made, window, int(letter))
    batch = result.dims[output.index("b")]
    features = result.dims[output.index("f")]
    return 2.0 * products * batch * features * right.dims[kernel.index("i")]


def _window(text: str) -> dict[str, list[str]]:
    """Parses `size=16 pad=0_0x1_1`."""
    parts = (part.partition("=") for part in text.split())
    return {name: value.split("x") for name, _, value in parts}


def _valid_pairs(
    size: int, kernel: int, result: int, window: Mapping[str, list[str]], axis: int
) -> int:
    """Returns the pairs of an output's and a kernel's place that meet an input."""

    def at(name: str, default: str) -> str:
        values = window.get(name, [])
        return values[axis] if axis < len(values) else default

    stride, reach = int(at("stride", "1")), int(at("rhs_dilate", "1"))
    spread, pad = int(at("lhs_dilate", "1")), int(at("pad", "0_0").split("_")[0])
    place = np.arange(result)[:, None] * stride + np.arange(kernel)[None] * reach - pad
    is_valid = (place >= 0) & (place % spread == 0) & (place // spread < size)
    return int(is_valid.sum())


def as_dict(total: Cost, most: int = 8) -> dict:
    """Returns a cost as JSON values, with the operations that move or take most."""
    return {
        "flops": total.flops,
        "cycles": total.cycles,
        "collectives": {k: dataclasses.asdict(v) for k, v in total.collectives.items()},
        "kernels": {name: kernel.calls for name, kernel in total.kernels.items()},
        "endless_loops": total.endless,
        "largest": [
            {"kind": kind, "source": source, "bytes": size}
            for (kind, source), size in _most(total.sources, most)
        ],
        "slowest": [
            {"source": source, "cycles": cycles}
            for source, cycles in _most(total.cycles_of, most)
        ],
    }


def _most(sources: Mapping[Any, float], count: int) -> list[tuple[Any, float]]:
    return sorted(sources.items(), key=lambda item: -item[1])[:count]
