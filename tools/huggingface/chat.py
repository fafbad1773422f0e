"""What a chat template means for our task chat.

A checkpoint's template is a program, in Jinja, that writes a conversation as one text.
We run it, in a sandbox, on a few conversations, and read from what it writes how turns
begin and end. A template is ours if these conversations are then the same tokens as in
its text. ChatML is, and so are those of Llama 3 and Gemma; Llama 2's is not. Calls of
tools are left out, and content that begins or ends with white space may be other tokens
where the template does not drop that.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lm import cli
from lm.tasks import chat
from lm.text import tokenizers
from lm.text.tokenizers import Tokenizer
from lm.types import UserError

# What people say, as far as a tokenizer might join it with what stands beside it.
_CONTENTS = (
    *("What is it?", "它是什么？", "1 + 1", "(a)", "- no", "'s", "été", "ok", "?!"),
)

# Tokens of what is tried, of which nothing may be cut.
_ROOM = 1_000_000

Render = Callable[[Sequence[chat.Turn]], str]


class NotOursError(Exception):
    """A template is of another form; the message says why."""


def choose(
    folder: Path, path: Path, task: Any, tokenizer: Tokenizer
) -> tuple[Any, Tokenizer]:
    """Returns the task chat and its tokenizer if a checkpoint has a template of ours.

    Else it returns what it is given, and says so if there is a template.

    Args:
        folder: The checkpoint's.
        path: The tokenizer's folder or file.
        task: The task that the checkpoint has otherwise, with a `length`.
        tokenizer: What `path` holds.
    """
    found = read(folder, path, task.length)
    if isinstance(found, str):
        cli.say(
            f"the task is {task.name}, not chat, because of the chat template: {found}"
        )
    return found if isinstance(found, tuple) else (task, tokenizer)


def read(
    folder: Path, tokenizer: Path, length: int
) -> tuple[chat.Config, Tokenizer] | str | None:
    """Returns how a checkpoint holds conversations.

    Args:
        folder: The checkpoint's.
        tokenizer: A tokenizer's folder or file.
        length: Tokens of the longest conversation.

    Returns:
        The task, and the tokenizer, whose marks of beginning and end are those of a
        conversation; or why there are none; or None if the folder has no template.
    """
    source, names = _template(folder)
    if not source:
        return None
    try:
        render = make_render(source, names)
        loaded = tokenizers.load(tokenizer)
        config, marks = _derive(render, loaded, names.get("bos_token") or "")
        config |= {"length": _ROOM, "max_new_tokens": 1}
        loaded = tokenizers.load(tokenizer, marks)
        for strip in (False, True):
            task = chat.Chat(chat.Config(**config, strip=strip), loaded)
            if _differing(task, render, (" ok ",)) is None:
                break
        else:
            task = chat.Chat(chat.Config(**config), loaded)
        if (wrong := _differing(task, render, _CONTENTS)) is not None:
            raise NotOursError(
                f"it writes {wrong[:60]!r} as other tokens than we would"
            )
        most = min(chat.Config.max_new_tokens, length // 2)
        fit = dataclasses.replace(task.config, length=length, max_new_tokens=most)
        return chat.Chat(fit, loaded).config, loaded
    except (NotOursError, UserError) as error:
        return str(error)
    # A template is a program, and may raise anything.
    except Exception as error:
        return f"it cannot be rendered: {' '.join(str(error).split())}"


def make_render(source: str, names: dict[str, str]) -> Render:
    """Returns what writes turns, and the opening of the assistant's next.

    Args:
        source: The template.
        names: Values that it may use, such as `bos_token`.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    template = environment.from_string(source)

    def render(turns: Sequence[chat.Turn]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return template.render(messages=messages, add_generation_prompt=True, **names)

    return render


class _Generation(Extension):
    """Reads `{% generation %}`, with which a template marks what is learned."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _template(folder: Path) -> tuple[str, dict[str, str]]:
    """Returns a folder's template, "" if none, and the names of its tokens."""
    values: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            values |= json.loads((folder / name).read_text(encoding="utf-8"))
    source = values.get("chat_template") or ""
    if isinstance(source, list):  # of several, by their names
        named = {each["name"]: each["template"] for each in source}
        source = named.get("default", "")
    file = folder / "chat_template.jinja"
    if file.is_file():
        source = file.read_text(encoding="utf-8")
    names = {
        key: value["content"] if isinstance(value, dict) else value
        for key, value in values.items()
        if key.endswith("_token") and value
    }
    return source, {key: v for key, v in names.items() if isinstance(v, str)}


def _derive(
    render: Render, tokenizer: Tokenizer, bos: str
) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Returns fields of the task's config, and names of marks.

    Raises:
        NotOursError: If turns are not an opening, content, an end mark and a closing.
    """
    turns = [("user", "UUU"), ("assistant", "AAA"), ("user", "VVV")]
    text = render(turns)
    before, to_assistant, to_user, after = _cut(text, "UUU", "AAA", "VVV")
    if to_assistant != after:
        raise NotOursError("what it writes before the assistant speaks varies")
    end = _mark_at(tokenizer, to_user)
    if not end or not to_assistant.startswith(end):
        raise NotOursError("a turn in it does not end with a mark that all turns have")
    rest = to_user.removeprefix(end)
    closing = rest[: len(rest) - len(rest.lstrip())]
    if not to_assistant.startswith(end + closing):
        raise NotOursError("turns in it end in several ways")
    assistant = to_assistant.removeprefix(end + closing)
    user = rest.removeprefix(closing)
    has_bos = bool(bos) and before.startswith(bos)
    before = before.removeprefix(bos) if has_bos else before
    if not assistant or not user or not before.endswith(user):
        raise NotOursError("turns in it do not all begin with who speaks")
    first = before.removesuffix(user)
    system = ""
    try:
        begin, to_user, _ = _cut(render([("system", "SSS"), *turns[:1]]), "SSS", "UUU")
        if to_user == end + closing + user:
            system = begin.removeprefix(bos) if has_bos else begin
    except (jinja2.TemplateError, NotOursError):
        pass  # it has no turns of a system's
    config = {
        "closing": closing,
        "openings": (system, user, assistant, ""),
        "first": first,
    }
    return config, {
        **{"bos_token": bos if has_bos else None, "cls_token": None},
        **{"eos_token": end, "sep_token": None},
    }


def _cut(text: str, *contents: str) -> list[str]:
    """Cuts a text at contents, each of which is in it once, in this order."""
    parts = []
    for content in contents:
        if text.count(content) != 1:
            raise NotOursError("it does not write each turn once, as it is")
        part, text = text.split(content)
        parts.append(part)
    return [*parts, text]


def _mark_at(tokenizer: Tokenizer, text: str) -> str:
    """Returns the longest mark that a text begins with, or ""."""
    marks = map(tokenizer.token, np.flatnonzero(tokenizer.is_special).tolist())
    return max((name for name in marks if text.startswith(name)), key=len, default="")


def _differing(task: chat.Chat, render: Render, contents: Sequence[str]) -> str | None:
    """Returns the text of a conversation that we write as other tokens, or None."""
    roles = [("user",), ("user", "assistant", "user")]
    if task.config.openings[0]:
        roles += [("system", *spoken) for spoken in roles]
    for spoken, shift in itertools.product(roles, range(len(contents))):
        said = [contents[(shift + i) % len(contents)] for i in range(len(spoken))]
        turns = list(zip(spoken, said))
        text = render(turns)
        # A prompt is what comes before the assistant's last turn.
        asked = [*turns, ("assistant", "")]
        messages = [{"role": role, "content": content} for role, content in asked]
        ours = task.prompt({"messages": messages})
        if not np.array_equal(ours, chat.encode_spelled(task.tokenizer, text)):
            return text
    return None
