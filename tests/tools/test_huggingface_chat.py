"""Chat templates of the common forms become our task's turns, token by token."""

import io
import json

import pytest
import sentencepiece
import tokenizers as hf

from lm.tasks import causal_lm
from lm.tasks.chat import Chat
from lm.text import tokenizers
from lm.types import UserError
from tools.huggingface import chat

LOOP = "{% for m in messages %}"
NEXT = "{% endfor %}{% if add_generation_prompt %}"
CHATML = (
    LOOP + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
    f"{NEXT}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for m in loop_messages %}"
    "{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    f"{{{{ content }}}}{NEXT}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_3_DATED = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
    "{%- set system_message = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}"
    "{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n\n' }}"
    "{{- system_message + '<|eot_id|>' }}" + LLAMA_3.replace("bos_token + ", "")
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    + LOOP
    + "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}"
    f"{NEXT}{{{{ '<start_of_turn>model\n' }}}}{{% endif %}}"
)
ZEPHYR = (
    "{% for m in messages %}\n{% if m.role in ['user', 'system', 'assistant'] %}\n"
    "{{ '<|' + m.role + '|>\n' + m.content + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}" + LOOP + "{% if m.role == 'user' %}"
    "{% set text = m.content %}{% if loop.first and system %}"
    "{% set text = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + text %}{% endif %}"
    "{{ bos_token + '[INST] ' + text + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
SPECIAL = (
    *("<|endoftext|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<bos>", "<eos>"),
    *("<start_of_turn>", "<end_of_turn>", "<|begin_of_text|>", "<|end_of_text|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)
TURNS = [("user", "Hi! 你好"), ("assistant", "It's 1.\n"), ("user", "<|im_end|> (b)")]


def write(folder, template, **names):
    """A byte-level vocabulary that joins line ends, and the template."""
    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(SPECIAL),
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["user\n\nWhat is it?", "model\nassistant", "all is ok ok"]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": template} | names
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def read(folder, length=300):
    return chat.read(folder, folder, length)


def prompt(task, turns):
    asked = [{"role": role, "content": text} for role, text in turns]
    return task.prompt({"messages": [*asked, {"role": "assistant", "content": ""}]})


def expected(tokenizer, text):
    """Tokens of a text with marks, in which what was said has been hidden."""
    pieces = []
    for part in text.split("§"):  # between § marks are not read
        tokenizer.encode_special_tokens = bool(len(pieces) % 2)
        pieces.append(tokenizer.encode(part, add_special_tokens=False).ids)
    return sum(pieces, [])


IM = "<|im_start|>"
HEAD = "<|start_header_id|>"
FORMS = {
    "chatml": (
        *(CHATML, {"bos_token": None, "eos_token": "<|im_end|>"}),
        f"{IM}user\n§Hi! 你好§<|im_end|>\n{IM}assistant\n§It's 1.\n§<|im_end|>\n"
        f"{IM}user\n§<|im_end|> (b)§<|im_end|>\n{IM}assistant\n",
    ),
    "chatml with a system": (
        # Its base model ends texts otherwise, as the config still says.
        *(DEFAULT_SYSTEM, {"bos_token": None, "eos_token": "<|endoftext|>"}),
        f"{IM}system\nBe kind.<|im_end|>\n"
        f"{IM}user\n§Hi! 你好§<|im_end|>\n{IM}assistant\n§It's 1.\n§<|im_end|>\n"
        f"{IM}user\n§<|im_end|> (b)§<|im_end|>\n{IM}assistant\n",
    ),
    "llama 3": (
        LLAMA_3,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        f"<|begin_of_text|>{HEAD}user<|end_header_id|>\n\n§Hi! 你好§<|eot_id|>"
        f"{HEAD}assistant<|end_header_id|>\n\n§It's 1.§<|eot_id|>"
        f"{HEAD}user<|end_header_id|>\n\n§<|im_end|> (b)§<|eot_id|>"
        f"{HEAD}assistant<|end_header_id|>\n\n",
    ),
    "llama 3 with a date": (
        *(LLAMA_3_DATED, {"bos_token": {"content": "<|begin_of_text|>"}}),
        f"<|begin_of_text|>{HEAD}system<|end_header_id|>\n\nToday: 26 Jul 2024\n\n"
        f"<|eot_id|>{HEAD}user<|end_header_id|>\n\n§Hi! 你好§<|eot_id|>"
        f"{HEAD}assistant<|end_header_id|>\n\n§It's 1.§<|eot_id|>"
        f"{HEAD}user<|end_header_id|>\n\n§<|im_end|> (b)§<|eot_id|>"
        f"{HEAD}assistant<|end_header_id|>\n\n",
    ),
    "gemma": (
        *(GEMMA, {"bos_token": "<bos>", "eos_token": "<eos>"}),
        "<bos><start_of_turn>user\n§Hi! 你好§<end_of_turn>\n"
        "<start_of_turn>model\n§It's 1.§<end_of_turn>\n"
        "<start_of_turn>user\n§<|im_end|> (b)§<end_of_turn>\n<start_of_turn>model\n",
    ),
    "zephyr": (
        *(ZEPHYR, {"bos_token": "<s>", "eos_token": "</s>"}),
        "<|user|>\n§Hi! 你好§</s>\n<|assistant|>\n§It's 1.\n§</s>\n"
        "<|user|>\n§<|im_end|> (b)§</s>\n<|assistant|>\n",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_conversation_is_the_tokens_of_its_template(form, tmp_path):
    template, names, text = FORMS[form]
    tokenizer = write(tmp_path, template, **names)
    config, loaded = read(tmp_path)
    task = Chat(config, loaded)
    ids = prompt(task, TURNS).tolist()
    assert ids == expected(tokenizer, text)
    # What is learned is the tokens of the same conversation.
    example = {"messages": [{"role": r, "content": c} for r, c in TURNS[:2]]}
    (document,) = task.encode([example])
    assert document["tokens"].tolist() == ids[: len(document["tokens"])]
    assert document["tokens"][-1] == loaded.eos_id
    names = {k: v["content"] if isinstance(v, dict) else v for k, v in names.items()}
    render = chat.make_render(template, {k: v for k, v in names.items() if v})
    plain = [(role, said.replace("<|im_end|>", "…").strip()) for role, said in TURNS]
    assert prompt(task, plain).tolist() == expected(tokenizer, render(plain))


@pytest.mark.parametrize("form", ["chatml", "chatml with a system", "llama 3"])
def test_a_systems_turn_is_the_templates(form, tmp_path):
    template, names, _ = FORMS[form]
    tokenizer = write(tmp_path, template, **names)
    config, loaded = read(tmp_path)
    turns = [("system", "Answer in one word."), *TURNS[:1]]
    render = chat.make_render(template, {k: v for k, v in names.items() if v})
    ids = prompt(Chat(config, loaded), turns).tolist()
    assert ids == expected(tokenizer, render(turns))


def test_turns_that_a_template_lacks_are_errors(tmp_path):
    write(tmp_path, GEMMA, bos_token="<bos>", eos_token="<eos>")
    config, loaded = read(tmp_path)
    task = Chat(config, loaded)
    for role in ("system", "tool"):
        with pytest.raises(UserError, match=f"has a turn of the {role}'s, which"):
            prompt(task, [(role, "x"), *TURNS[:1]])


def test_the_end_of_a_turn_ends_what_is_written_and_is_saved(tmp_path):
    write(tmp_path, GEMMA, bos_token="<bos>", eos_token="<eos>")
    _, loaded = read(tmp_path)
    assert loaded.token(loaded.eos_id) == "<end_of_turn>"
    loaded.save(tmp_path / "saved")
    assert tokenizers.load(tmp_path / "saved").fingerprint == loaded.fingerprint
    write(tmp_path, ZEPHYR, bos_token="<s>", eos_token="</s>")
    _, loaded = read(tmp_path)
    loaded.save(tmp_path / "zephyr")
    again = tokenizers.load(tmp_path / "zephyr")
    assert (again.bos_id, again.token(again.eos_id)) == (-1, "</s>")


@pytest.mark.parametrize(
    "template, message",
    [
        (LLAMA_2, "what it writes before the assistant speaks varies"),
        ("{% for m in messages %}{{ m.content }}", "it cannot be rendered"),
        ("{{ messages[0].content }}", "does not write each turn once"),
        ("{{ messages + 1 }}", "it cannot be rendered: can only concatenate list"),
        ("{{ raise_exception('no') }}", "it cannot be rendered: no"),
        ("{{ ''.__class__.__mro__ }}", "it cannot be rendered"),
        (CHATML.replace("'<|im_end|>'", "'.'"), "does not end with a mark"),
        (CHATML.replace("'<|im_start|>assistant\n'", "''"), "assistant speaks varies"),
        (CHATML.replace("\n", " "), "as other tokens than we would"),
    ],
)
def test_other_forms_are_told(template, message, tmp_path):
    write(tmp_path, template, bos_token="<s>", eos_token="</s>")
    why = read(tmp_path)
    assert isinstance(why, str) and message in why and "\n" not in why


def test_where_a_template_is(tmp_path):
    write(tmp_path, [{"name": "tools", "template": "x"}])
    assert read(tmp_path) is None
    named = [{"name": "rag", "template": "x"}, {"name": "default", "template": CHATML}]
    write(tmp_path, named)
    assert read(tmp_path)[0].openings[1] == "<|im_start|>user\n"
    (tmp_path / "chat_template.jinja").write_text(ZEPHYR)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    assert read(tmp_path)[0].openings[1] == "<|user|>\n"
    # A mark that names who is learned from is no matter to us.
    marked = CHATML.replace("{{ '<", "{% generation %}{{ '<", 1)
    marked = marked.replace("{% endfor", "{% endgeneration %}{% endfor", 1)
    (tmp_path / "chat_template.jinja").write_text(marked)
    assert read(tmp_path)[0].openings[1] == "<|im_start|>user\n"


def test_a_tokenizer_that_begins_each_text_with_a_space_is_told(tmp_path):
    """As SentencePiece does; what is said would begin otherwise than in its text."""
    for prefix in (True, False):
        folder = tmp_path / str(prefix)
        folder.mkdir()
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["What is it? user model ok"] * 50),
            model_writer=model,
            vocab_size=300,
            byte_fallback=True,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            add_dummy_prefix=prefix,
            remove_extra_whitespaces=False,
            control_symbols=["<start_of_turn>", "<end_of_turn>"],
            minloglevel=2,
        )
        (folder / "tokenizer.model").write_bytes(model.getvalue())
        config = {"chat_template": GEMMA, "bos_token": "<s>", "eos_token": "</s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        found = read(folder)
        if prefix:
            assert "as other tokens than we would" in found
        else:
            assert found[1].token(found[1].eos_id) == "<end_of_turn>"


def test_the_task_is_chosen_by_the_template(tmp_path, capsys):
    before = causal_lm.Config(length=300)
    write(tmp_path, CHATML, eos_token="<|im_end|>")
    loaded = tokenizers.load(tmp_path)
    task, tokenizer = chat.choose(tmp_path, tmp_path, before, loaded)
    assert (task.name, task.length, task.max_new_tokens) == ("chat", 300, 128)
    assert tokenizer.token(tokenizer.eos_id) == "<|im_end|>"
    assert capsys.readouterr() == ("", "")
    write(tmp_path, LLAMA_2, bos_token="<s>", eos_token="</s>")
    assert chat.choose(tmp_path, tmp_path, before, loaded) == (before, loaded)
    said = "".join(capsys.readouterr())
    assert "the task is causal_lm, not chat" in said and "speaks varies" in said
    write(tmp_path, None)
    assert chat.choose(tmp_path, tmp_path, before, loaded) == (before, loaded)
    assert capsys.readouterr() == ("", "")
