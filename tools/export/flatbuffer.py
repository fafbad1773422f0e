"""A TF Lite file, which is a flatbuffer, without what it says twice.

Each signature has a table of every weight, with a name, and with a scale and a zero
point for each of its rows: a quarter of a small file, though the weights are shared.
"""

import importlib
from typing import Any

# Of weights, in bytes.
ALIGNMENT = 16


def compact(model: bytes) -> bytes:
    """Returns a file that runs alike, with equal vectors once, and unnamed.

    Names of inputs and outputs stay.

    Args:
        model: As the quantiser writes it: weights stand behind the tables.
    """
    # Generated, and without types.
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    tables = schema.ModelT.InitFromPackedBuf(model, 0)
    for subgraph in tables.subgraphs:
        named = {*subgraph.inputs, *subgraph.outputs}
        for index, tensor in enumerate(subgraph.tensors):
            if index not in named:
                tensor.name = None
            scales = tensor.quantization
            if scales and scales.scale is None and scales.details is None:
                tensor.quantization = None
    # Of a buffer within the tables, the offset is 0 or 1.
    outside = [buffer for buffer in tables.buffers if buffer.offset > 1]
    start = min((buffer.offset for buffer in outside), default=len(model))
    # Offsets are of one size, so the tables are too, whatever the offsets.
    size = -(-len(pack(tables, start)) // ALIGNMENT) * ALIGNMENT
    for buffer in outside:
        buffer.offset += size - start
    return pack(tables, start).ljust(size, b"\0") + model[start:]


def pack(tables: Any, size: int) -> bytes:
    """Returns tables as bytes, about `size` of them; weights in them are aligned."""
    flatbuffers: Any = importlib.import_module("flatbuffers")

    class Builder(flatbuffers.Builder):
        """Writes a vector or a string once, and refers to it."""

        def __init__(self) -> None:
            super().__init__(size)
            self._written: dict[Any, int] = {}

        def CreateNumpyVector(self, x: Any) -> int:  # noqa: N802
            key = x.dtype.str, x.tobytes()
            if key not in self._written:
                if x.dtype.itemsize == 1:
                    self.Prep(ALIGNMENT, x.nbytes)
                self._written[key] = super().CreateNumpyVector(x)
            return self._written[key]

    builder = Builder()
    builder.Finish(tables.Pack(builder), b"TFL3")
    return bytes(builder.Output())
