"""TPUs that can be rented: what a chip has, and which slices there are.

Sources: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and the pages of
the versions there (`v4`, `v5e`, `v5p`, `v6e`): memory, peak, interconnect,
slices. The peak of a chip is in `lm.train.perf`. Google publishes no clocks: those here
are the peak divided by what the matrix units multiply in a cycle, so a program of
nothing but matmuls reaches the peak.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from lm.cli import suggest
from lm.types import UserError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A generation.

    Attributes:
        name: As in a topology.
        hbm: Bytes of memory, by the data sheet.
        usable: Bytes of it that libtpu's compiler hands out (its own messages, 0.0.52).
        clock: Cycles a second of the core.
        ici: Bytes a second that a chip can send to its neighbours, over all links.
        slices: Shapes that are rented.
        largest: Chips of the largest slice; beyond those of `slices`, sides that are
            multiples of 4 and do not fall, where it is more.
    """

    name: str
    hbm: int
    usable: float
    clock: float
    ici: float
    slices: tuple[tuple[int, ...], ...]
    largest: int

    def rents(self, shape: tuple[int, ...]) -> bool:
        """Returns whether there is a slice of this shape."""
        if shape in self.slices:
            return True
        is_whole = all(side % 4 == 0 for side in shape) and list(shape) == sorted(shape)
        size = math.prod(shape)
        most = math.prod(self.slices[-1])
        return len(shape) == 3 and is_whole and most < size <= self.largest

    def shapes(self) -> Iterable[tuple[int, ...]]:
        """Returns all shapes, the smallest first."""
        sides = range(4, 29, 4) if len(self.slices[-1]) == 3 else ()
        cubes = ((a, b, c) for a in sides for b in sides for c in sides)
        return sorted({*self.slices, *filter(self.rents, cubes)}, key=_by_size)

    def next_larger(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Returns the next slice of more chips, None of the largest."""
        size = math.prod(shape)
        return next((s for s in self.shapes() if math.prod(s) > size), None)


def _by_size(shape: tuple[int, ...]) -> tuple:
    return math.prod(shape), max(shape), shape


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_DEEP = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4))
_DEEP_V5P = ((1, 1, 1), *_DEEP)

CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 32 * GIB, 30.5 * GIB, 1.05e9, 300e9, _DEEP, 4096),
        Chip("v5e", 16 * GIB, 15.75 * GIB, 1.5e9, 200e9, _FLAT, 256),
        Chip("v5p", 95 * GIB, 95.73 * GIB, 1.75e9, 600e9, _DEEP_V5P, 6144),
        Chip("v6e", 32 * GIB, 31.24 * GIB, 1.75e9, 448e9, _FLAT, 256),
    )
}


@dataclass(frozen=True)
class Slice:
    """One slice of a topology.

    Attributes:
        chip: Its generation.
        shape: Chips along each side.
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As in `--topology`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def size(self) -> int:
        """Its chips."""
        return math.prod(self.shape)

    @classmethod
    def of(cls, text: str) -> "Slice":
        """Parses `v5e:4x4`.

        Raises:
            UserError: If there is no such slice for rent; names the nearest.

        >>> Slice.of("v5e:4x4").size
        16
        """
        match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
        if not match:
            raise UserError(
                f"--topology {text!r} is not a chip and a shape, such as v5e:4x4 or "
                "v5p:4x4x4"
            )
        name, shape = match[1], tuple(int(n) for n in match[2].split("x"))
        if name not in CHIPS:
            near = suggest(name, list(CHIPS))
            raise UserError(f"--topology: no TPU {name!r} in the table of chips{near}")
        chip = CHIPS[name]
        if not chip.rents(shape):
            near = Slice(chip, nearest(chip, shape)).name
            raise UserError(
                f"--topology {text}: there is no such slice for rent (the largest "
                f"{name} slice has {chip.largest:,} chips); the nearest is {near}"
            )
        return cls(chip, shape)


def nearest(chip: Chip, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the slice whose number of chips is nearest, the larger of two."""
    size = math.prod(shape) or 1

    def distance(other: tuple[int, ...]) -> tuple:
        ratio = math.prod(other) / size
        return abs(math.log(ratio)), ratio < 1, sorted(other) != sorted(shape), other

    return min(chip.shapes(), key=distance)
