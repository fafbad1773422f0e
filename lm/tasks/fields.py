"""Fields of an example that are texts, or lists that a table has as JSON."""

import json
from collections.abc import Mapping
from typing import Any

from lm.tasks import labels
from lm.types import UserError


def text(example: Mapping[str, Any], name: str, *used: str) -> str:
    """Returns a field that is a text; `used` is as in `labels.field`.

    Raises:
        UserError: If it is missing or is none.

    >>> text({"question": "Who?"}, "question")
    'Who?'
    """
    value = labels.field(example, name, *used)
    if not isinstance(value, str):
        raise UserError(
            f"{labels.where(example)}: {name!r} is {value!r:.40}, not a text; mend it, "
            "or name another field in the task's config"
        )
    return value


def listed(example: Mapping[str, Any], name: str) -> Any:
    """Returns a field as it is, or the list that a text in it is as JSON.

    Raises:
        UserError: If it is missing, or is a text that only begins as a list.

    >>> listed({"label": '["a", "b"]'}, "label"), listed({"label": "a"}, "label")
    (['a', 'b'], 'a')
    """
    value = labels.field(example, name)
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise UserError(
            f"{labels.where(example)}: {name!r} is {value!r:.40}, no list in JSON such "
            'as ["a", "b"]; mend it'
        ) from error
