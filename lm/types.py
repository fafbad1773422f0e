"""Types and the one exception that every floor shares."""

from collections.abc import Mapping
from typing import Any

Array = Any  # a jax.Array, a tracer, or a numpy array
PyTree = Any
Params = Mapping[str, Any]
Batch = Mapping[str, Array]


class UserError(Exception):
    """A mistake of the user's: one line that names the thing and the cure.

    Commands print the message without a traceback and exit with status 1.
    """
