"""The text form of a sweep's space.

    optim.learning_rate=log(1e-5,1e-3); optim.name=adamw,lion; seed=0..2
    model.num_layers=2,4 & model.emb_dim=64,128

Keys are a product, but those that an & joins go together, row by row. A key has values,
ranges of whole numbers with both ends, or a function: `uniform`, `log`, `int` and
`logint` of (low, high), or of (low, high, points).

A value is what `--config.KEY=` takes, so it has another type only once the space is
`typed`. One that has a separator outside of brackets, or looks like a range or a
function, stands in quotes, where a backslash is for quotes and backslashes only.
"""

import math
import re

from experiments.search.space import (
    FUNCTIONS,
    MOST,
    Distribution,
    Space,
    as_word,
    chain,
    choice,
    product,
    spread,
    union,
    zipped,
)
from lm.cli import suggest
from lm.types import UserError

_STRING = r"""(['"])((?:\\.|(?!\1)[^\\])*)\1"""
# A string, which does not begin inside a word as in don't; a backslash and what it is
# before; any other character.
_TOKEN = re.compile(rf"(?<!\w){_STRING}|\\.|.", re.DOTALL)
_CALL = re.compile(r"([A-Za-z_]\w*)\((.*)\)", re.DOTALL)
_RANGE = re.compile(r"(-?[0-9]{1,15})\.\.(-?[0-9]{1,15})")


def parse(text: str) -> Space:
    """Returns the space of a text.

    >>> parse("a=log(1e-5,1e-3); b=0..1").factors[0]
    Distribution(function='log', key='a', low=1e-05, high=0.001)
    >>> parse("a=1,2 & b=(3,4),'x;y'").factors[0].rows
    ({'a': '1', 'b': '(3,4)'}, {'a': '2', 'b': 'x;y'})

    Raises:
        UserError: If it is not of the form that the module's docstring describes, or
            has the same row or key twice.
    """
    spaces = []
    for part in _split(text, ";"):
        columns = [_parse_column(column) for column in _split(part, "&")]
        space = zipped(*columns) if len(columns) > 1 else columns[0]
        if space.size < math.inf and union(space).size < space.size:
            raise UserError(f"{part} has the same row twice; leave one out")
        spaces.append(space)
    return product(*spaces)


def as_text(space: Space) -> str:
    """Returns a text whose space has the same flags in every row.

    >>> as_text(zipped(choice("a", 1, 2), choice("b", ",", (3,))))
    "a=1,2 & b=',',(3,)"

    Raises:
        UserError: If rows of a table differ in their keys, which no text can say.
    """
    parts = []
    for factor in space.factors:
        if isinstance(factor, Distribution):
            parts.append(str(factor))
            continue
        if any(row.keys() != set(factor.keys) for row in factor.rows):
            raise UserError(
                f"some rows lack some of {' & '.join(factor.keys)}, which text cannot "
                "say; leave them in the config's get_sweep"
            )
        columns = {k: [_quoted(k, row[k]) for row in factor.rows] for k in factor.keys}
        parts.append(" & ".join(f"{k}={','.join(v)}" for k, v in columns.items()))
    return "; ".join(parts)


def _split(text: str, mark: str) -> list[str]:
    """Splits at a mark that is outside of quotes and brackets."""
    pieces, depth = [""], 0
    for token in _TOKEN.finditer(text):
        word = token[0]
        depth += (word in {*"([{"}) - (word in {*")]}"})
        if depth < 0:
            break
        if word == mark and not depth:
            pieces.append("")
        else:
            pieces[-1] += word
    if depth:
        raise UserError(f"a bracket in {text!r} has no partner; quote the value")
    return [piece.strip() for piece in pieces]


def _parse_column(text: str) -> Space:
    """Returns the space of `key=spec`."""
    key, has_spec, spec = map(str.strip, text.partition("="))
    if not text:
        raise UserError("a part of the sweep is empty; leave out its ; or &")
    if not (key and has_spec):
        raise UserError(f"{text!r} is not key=values, such as optim.b1=0.9,0.95")
    pieces = [_parse_piece(key, piece) for piece in _split(spec, ",")]
    return chain(*pieces) if len(pieces) > 1 else pieces[0]


def _parse_piece(key: str, piece: str) -> Space:
    """Returns the space of a value, a range or a function."""
    if not piece:
        raise UserError(f"{key} has an empty value; name one, or write ''")
    if ends := _RANGE.fullmatch(piece):
        low, high = map(int, ends.groups())
        if not 0 <= high - low < MOST:
            raise UserError(
                f"{key}={piece} must go up, over at most {MOST:,} numbers; "
                "int(low,high) has no limit"
            )
        return choice(key, *map(str, range(low, high + 1)))
    if call := _CALL.fullmatch(piece):
        return _parse_call(key, *call.groups())
    return choice(key, _unquoted(piece))


def _parse_call(key: str, name: str, text: str) -> Space:
    """Returns the space of a function."""
    call = f"{key}={name}({text})"
    if name not in FUNCTIONS:
        near = suggest(name, sorted(FUNCTIONS))
        raise UserError(f"{call}: no function {name!r} (quote it if a value){near}")
    words = _split(text, ",")
    if len(words) not in (2, 3):
        raise UserError(f"{call} must be {name}(low,high) or {name}(low,high,points)")
    numbers = []
    for word in words:
        try:
            numbers.append(float(word) if re.search("[^-+0-9]", word) else int(word))
        except ValueError:
            raise UserError(f"{call}: {word!r} is no number; write one") from None
    return spread(name, key, *numbers)


def _unquoted(piece: str) -> str:
    """Returns what is inside the quotes of a value, or else the value."""
    string = re.fullmatch(_STRING, piece, re.DOTALL)
    return re.sub(r"""\\([\\'"])""", r"\1", string[2]) if string else piece


def _quoted(key: str, value: object) -> str:
    """Returns a value's word, in quotes if without them it would be something else."""
    word = as_word(value)
    try:  # beside a quote, which must not end a string that the word begins
        is_plain = all(
            parse(f"{key}={word},{mark}") == choice(key, word, mark) for mark in "'\""
        )
    except UserError:
        is_plain = False
    return word if is_plain else "'" + re.sub(r"([\\'])", r"\\\1", word) + "'"
