"""Names of leaves, and choices made by regular expressions on them.

A parameter's name is the path of its keys joined by `/`, for example
`decoder/layers/attention/query/kernel`. Weight decay, freezing, learning rates,
quantisation and pruning all choose parameters by these names.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lm.types import PyTree, UserError


def name_of(path: Sequence[Any]) -> str:
    """Returns the `/`-joined name of a key path from `jax.tree_util`."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
        for key in path
    )


def names(tree: PyTree) -> PyTree:
    """Returns a tree of the same structure that holds each leaf's name.

    >>> names({"mlp": {"wi": 0, "wo": 1}})
    {'mlp': {'wi': 'mlp/wi', 'wo': 'mlp/wo'}}
    """
    return map_with_names(lambda name, _: name, tree)


def map_with_names(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Maps `fn(name, leaf, *rest_leaves)` over the leaves."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: fn(name_of(path), *leaves), tree, *rest
    )


def first_match(
    tree: PyTree, rules: Sequence[tuple[str, Any]], default: Any, what: str = "rule"
) -> PyTree:
    """Returns for each leaf the value of the first rule that its name matches.

    Args:
        tree: Any tree.
        rules: `(regex, value)` pairs; a regex matches anywhere in the name.
        default: The value of leaves that no rule matches.
        what: What a rule is called in the error message.

    Raises:
        UserError: If a regex is invalid or matches no leaf.

    >>> first_match({"a": {"bias": 0, "kernel": 0}}, [("bias", False)], True)
    {'a': {'bias': False, 'kernel': True}}
    """
    try:
        compiled = [(re.compile(pattern), value) for pattern, value in rules]
    except re.error as error:
        raise UserError(
            f"{what} {error.pattern!r} is no regular expression: {error}"
        ) from error
    all_names = jax.tree.leaves(names(tree))
    for pattern, _ in compiled:
        if not any(pattern.search(name) for name in all_names):
            raise UserError(
                f"{what} {pattern.pattern!r} matches no parameter; the names look like "
                f"{', '.join(all_names[:3])}"
            )

    def choose(name: str, _) -> Any:
        return next((v for pattern, v in compiled if pattern.search(name)), default)

    return map_with_names(choose, tree)


def count(tree: PyTree) -> int:
    """Returns the number of elements in all leaves."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))
