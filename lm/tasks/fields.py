"""Fields of an example that are texts."""

from collections.abc import Mapping
from typing import Any

from lm.tasks import labels
from lm.types import UserError


def text(example: Mapping[str, Any], name: str) -> str:
    """Returns a field that is a text.

    Raises:
        UserError: If it is missing or is none.

    >>> text({"question": "Who?"}, "question")
    'Who?'
    """
    value = labels.field(example, name)
    if not isinstance(value, str):
        raise UserError(
            f"{labels.where(example)}: {name!r} is {value!r:.40}, not a text; mend it, "
            "or name another field in the task's config"
        )
    return value
