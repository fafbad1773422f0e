"""What the axes of a kernel are."""

import re

Axes = tuple[int, ...]


def in_out_axes(name: str) -> tuple[Axes, Axes]:
    """Returns the axes of a kernel that come in and those that go out.

    They are counted from the end. Axes before them are layers of a scanned stack,
    each with a kernel of its own. The kernel of a vocabulary head [V, D] is taken for
    the table that it is: rows come in.

    >>> in_out_axes("decoder/layers/attention/query/kernel")  # [L, D, N, H]
    ((-3,), (-2, -1))
    >>> in_out_axes("decoder/layers_0/attention/out/kernel")  # [N, H, D]
    ((-3, -2), (-1,))
    >>> in_out_axes("decoder/layers/mlp/wi/kernel")  # [L, D, F]
    ((-2,), (-1,))
    >>> in_out_axes("layers_0/conv/kernel")  # [W, D, 2, F]
    ((-4, -3), (-2, -1))
    >>> in_out_axes("conv_3/kernel")  # [W, D, F]
    ((-3, -2), (-1,))
    """
    if re.search(r"(^|/)(query|key|value)/kernel$", name):
        return (-3,), (-2, -1)
    if re.search(r"(^|/)conv/kernel$", name):
        return (-4, -3), (-2, -1)
    if re.search(r"(^|/)(out|conv_\d+)/kernel$", name):
        return (-3, -2), (-1,)
    return (-2,), (-1,)
