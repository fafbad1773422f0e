"""LiteRT-LM bundles: the public runtime writes what JAX does."""

import dataclasses
import io
import json
import subprocess
import sys
from argparse import Namespace
from typing import Any

import jax
import numpy as np
import optax
import pytest
from sentencepiece import SentencePieceTrainer

from lm.completion import Completer, Writer
from lm.data.pipeline import DataConfig, Piece
from lm.decoding import Config as Decoding
from lm.models import gpt
from lm.tasks import causal_lm, chat, text_to_text
from lm.text import tokenizers
from lm.text.sentencepiece_tokenizer import SentencePieceTokenizer
from lm.train.config import Config
from lm.train.state import init_params
from lm.train.workdir import Loaded
from lm.types import UserError
from tools.export import graph, litertlm

WHO = ["the fox", "a cat", "my dog", "we"]
DOES = ["sees", "likes", "finds"]
WHAT = ["the sea", "stones", "an apple"]
PAIRS = [(i, j) for i in range(len(WHO)) for j in range(len(WHAT))]
QUESTIONS = [f"what of {WHO[i]} and {WHAT[j]}?" for i, j in PAIRS]
ANSWERS = [f"{WHO[i]} {DOES[j]} {WHAT[j]}." for i, j in PAIRS]
# Places of the cache, and new tokens.
S, N = 64, 14
MODEL = gpt.Config(vocab_size=400, num_layers=1, emb_dim=64, num_heads=2, max_len=S)


def loaded_of(config, tokenizer, params):
    """Returns a model as if a workdir had been loaded."""
    task = {
        causal_lm.Config: causal_lm.CausalLM,
        chat.Config: chat.Chat,
        text_to_text.Config: text_to_text.TextToText,
    }[type(config)](config, tokenizer)
    data = DataConfig(sources=("none",), tokenizer="none")
    whole = Config(model=MODEL, task=config, data=data)
    return Loaded(whole, tokenizer, task, task.build_model(MODEL), params, 1)


def recital(first, number=8):
    """Returns a text in which each sentence tells what the next one is."""
    return " ".join(ANSWERS[(first + i) % len(ANSWERS)] for i in range(number))


def said(*texts):
    roles = ("user", "assistant") * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts)]


@pytest.fixture(scope="module")
def talker():
    """A model that learnt to answer questions, and can go on with a text."""
    texts = [*QUESTIONS, *ANSWERS, "<|user|>", "<|assistant|>"] * 20
    tokenizer = tokenizers.train("bpe", texts, vocab_size=370)
    config = chat.Config(length=S, max_new_tokens=N)
    loaded = loaded_of(config, tokenizer, None)
    reader = loaded_of(causal_lm.Config(length=S), tokenizer, None).task
    task, model, rng = loaded.task, loaded.model, np.random.default_rng(0)
    documents = []
    for a, b in rng.integers(len(PAIRS), size=(64, 2)):
        turns = said(QUESTIONS[a], ANSWERS[a], QUESTIONS[b], ANSWERS[b])
        documents += task.encode([{"messages": turns}])
        documents += reader.encode([{"text": recital(a)}])
    rows = []
    for document in documents:
        piece = Piece(0, 0, len(document["tokens"]) - 1, 0)
        document = {"said": document["tokens"], **document}
        rows.append(task.features([(piece, document)], (S,), rng))
    data = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    data |= {"example_mask": np.ones(len(rows), np.float32)}
    # The loss is that of a language model: it learns all that is said.
    data["loss_mask"] = (data["segment_ids"] > 0).astype(np.float32)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0, 1e-2, 10, 250))

    @jax.jit
    def step(params, state, batch):
        def loss(params):
            return task.loss(model, params, batch, None)[0] / batch["loss_mask"].sum()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    params = jax.jit(init_params, static_argnums=0)(model, np.uint32(0))
    state, value = optimizer.init(params), 0.0
    for _ in range(250):
        chosen = rng.choice(128, 8)
        batch = {name: values[chosen] for name, values in data.items()}
        params, state, value = step(params, state, batch)
    assert value < 0.3
    return dataclasses.replace(loaded, params=params)


@pytest.fixture(scope="module")
def writer(talker):
    """The same model, which goes on with a text."""
    return loaded_of(causal_lm.Config(length=S), talker.tokenizer, talker.params)


@pytest.fixture(scope="module")
def built(writer):
    return graph.build(writer, [16, 32, S])


# Runs steps on a bundle where there is neither JAX nor anything of ours.
CHILD = """
import json, sys
for name in ("jax", "jaxlib", "flax", "tensorflow", "lm", "tools"):
    sys.modules[name] = None
import litert_lm
litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
path, max_output_tokens = sys.argv[1], int(sys.argv[2])
cpu = litert_lm.Backend.CPU(thread_count=2)
engine = litert_lm.Engine(path, cpu, cache_dir=":nocache")
greedy = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0)
def go_on(*parts):
    session = engine.create_session(
        sampler_config=greedy, max_output_tokens=max_output_tokens
    )
    for part in parts:
        session.run_prefill([part])
    return session.run_decode().texts[0]
def converse(before, *messages):
    talk = engine.create_conversation(
        messages=before, max_output_tokens=max_output_tokens
    )
    return [str(talk.send_message(each)) for each in messages]
def after(first, second):
    talk = engine.create_conversation(max_output_tokens=max_output_tokens)
    answer = str(talk.send_message(first))
    return answer, talk.token_count, talk.render_message_to_string(second)
def render(before, message):
    talk = engine.create_conversation(messages=before)
    return talk.render_message_to_string(message)
does = {
    "go_on": go_on, "converse": converse, "after": after, "render": render,
    "tokenize": engine.tokenize, "detokenize": engine.detokenize,
}
print(json.dumps([does[name](*given) for name, *given in json.load(sys.stdin)]))
"""


def run(folder, *steps):
    """Runs steps on a bundle; returns what each makes."""
    command = [sys.executable, "-c", CHILD, str(folder / "model.litertlm"), str(N)]
    done = subprocess.run(
        command, input=json.dumps(steps), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def texts_of(loaded, prompts):
    """Returns what JAX writes."""
    config = Decoding(max_new_tokens=N, temperature=0.0)
    completer = Completer(loaded.model, loaded.params, loaded.tokenizer, config)
    return [completion.text for completion in completer(prompts)]


def write(folder, built, loaded, how="none"):
    options = Namespace(quantize=how, converter="direct", calibration="")
    litertlm.write(folder, built, loaded, options)


@pytest.fixture(scope="module")
def bundle(built, writer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    write(folder, built, writer)
    return folder


@pytest.fixture(scope="module")
def written(writer):
    """Prompts, and what JAX writes."""
    prompts = [" ".join(answer.split()[:4]) for answer in ANSWERS]
    # From less than the shortest prefill to a cache that the text fills.
    for number, size in enumerate((15, 16, 17, 31, 32, 33, 40, S - N - 1)):
        ids = writer.tokenizer.encode(recital(number, 20))
        prompts.append(writer.tokenizer.decode(ids[:size]))
    return prompts, texts_of(writer, prompts)


def test_a_bundle_writes_what_jax_does(bundle, written):
    prompts, expected = written
    found = run(bundle, *(["go_on", prompt] for prompt in prompts))
    assert len(prompts) == 20 and len(set(found)) > 10
    assert found == expected


def test_in_int8_it_is_smaller_and_does_the_same(
    bundle, built, writer, written, tmp_path
):
    write(tmp_path, built, writer, "int8")
    prompts, expected = written
    assert run(tmp_path, *(["go_on", prompt] for prompt in prompts)) == expected
    sizes = [(f / "model.litertlm").stat().st_size for f in (tmp_path, bundle)]
    assert sizes[0] < 0.6 * sizes[1]


def test_a_conversation_is_read_as_the_task_reads_it(built, talker, tmp_path):
    write(tmp_path, built, talker)
    first, second = QUESTIONS[2], QUESTIONS[7]
    odd = '{{ 1 + 1 }} "é" \\n\nand'
    before = said(first, ANSWERS[2])
    whole, longer, answers, (answer, count, rest) = run(
        tmp_path,
        ["render", [], odd],
        ["render", before, second],
        ["converse", [], first, second],
        ["after", first, second],
    )
    task, tokenizer = talker.task, talker.tokenizer

    def prompt(*texts):
        return task.prompt({"messages": said(*texts)}).tolist()

    bos, eos = [tokenizer.bos_id], [tokenizer.eos_id]
    parts = run(tmp_path, *(["tokenize", text] for text in (whole, longer, rest)))
    assert bos + parts[0] == prompt(odd)
    assert bos + parts[1] == prompt(first, ANSWERS[2], second, "")
    # What it has read and written is in the cache, and only what is new is read.
    written = tokenizer.encode(answer).tolist()
    read = [*prompt(first), *written, *eos]
    assert count == len(read)
    assert read + parts[2] == prompt(first, answer, second, "")
    talks = said(first), said(first, answers[0], second, "")
    writer = Writer(task, talker.model, tokenizer, 2)
    answered = writer(talker.params, [{"messages": turns} for turns in talks])
    assert answers == [each["prediction"] for each in answered]
    assert answers[0] == answer in ANSWERS


def test_a_cache_is_filled_to_its_end(bundle, writer):
    tokenizer = writer.tokenizer
    ids = tokenizer.encode(recital(0, 20))
    steps = []
    for first, second in ((10, 15), (30, 23), (38, 16), (50, 4), (41, 13)):
        parts = ids[:first], ids[first : first + second]
        texts = [tokenizer.decode(part) for part in parts]
        assert [*tokenizer.encode(texts[0]), *tokenizer.encode(texts[1])] == [
            *parts[0],
            *parts[1],
        ]
        steps += [["go_on", *texts], ["go_on", "".join(texts)]]
    found = run(bundle, *steps)
    assert found[::2] == found[1::2] and all(found)


def test_marks_are_neither_read_nor_written(writer, talker, tmp_path):
    texts = [*QUESTIONS, *ANSWERS] * 20
    tokenizer = tokenizers.train("byte_bpe", texts, vocab_size=300)
    # One mark, and one row beyond the vocabulary, whose scores are often the highest.
    table = np.array(writer.params["embedder"]["token"]["embedding"])
    table[[tokenizer.pad_id, 399]] *= 30
    params = {**writer.params, "embedder": {"token": {"embedding": table}}}
    loaded = loaded_of(talker.task.config, tokenizer, params)
    write(tmp_path, graph.build(loaded, [16, S]), loaded)
    prompts = [*ANSWERS[:3], "", "é", "日本 <pad>"]
    steps = [["go_on", prompt] for prompt in prompts]
    question = QUESTIONS[5] + " <pad>"
    *found, ids, rendered = run(
        tmp_path, *steps, ["tokenize", prompts[-1]], ["render", [], question]
    )
    assert found == texts_of(loaded, prompts)
    assert ids == tokenizer.encode(prompts[-1]).tolist()
    (ids,) = run(tmp_path, ["tokenize", rendered])
    task: Any = loaded.task
    expected = task.prompt({"messages": said(question)})
    assert [tokenizer.bos_id, *ids] == expected.tolist()


def foreign(**marks):
    """A tokenizer that puts a space before every text."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(QUESTIONS * 20),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **marks,
    )
    return SentencePieceTokenizer(model.getvalue(), {})


@pytest.mark.parametrize(
    "config, tokenizer, message",
    [
        (
            causal_lm.Config(length=S, prefix_lm=True),
            None,
            "reads a prompt from left to right; train with task.prefix_lm=false",
        ),
        (
            text_to_text.Config(
                architecture="prefix_lm", length=S // 2, targets_length=S // 2
            ),
            None,
            "task text_to_text cannot be a LiteRT-LM bundle; those that can: causal_lm",
        ),
        (
            causal_lm.Config(length=S),
            lambda: tokenizers.train("bytes", []),
            "no tokenizer of the kind bytes; use a model whose tokenizer was trained",
        ),
        (
            causal_lm.Config(length=S),
            lambda: foreign(eos_id=-1),
            "up to a mark of a text's end, .* lacks; choose another --format",
        ),
        (
            chat.Config(length=S, max_new_tokens=N, opening="{role}:"),
            foreign,
            "joins task.opening .* with what follows it, such as .*; choose another",
        ),
    ],
)
def test_what_the_runtime_would_not_do_is_refused(
    built, writer, tmp_path, config, tokenizer, message
):
    tokenizer = tokenizer() if tokenizer else writer.tokenizer
    loaded = loaded_of(config, tokenizer, writer.params)
    both_ways = getattr(config, "prefix_lm", False)
    with pytest.raises(UserError, match=message) as caught:
        write(tmp_path, dataclasses.replace(built, prefix_lm=both_ways), loaded)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_model_without_keys_and_values_is_refused(built, writer, tmp_path):
    signatures = tuple(
        dataclasses.replace(
            signature,
            inputs={k: v for k, v in signature.inputs.items() if "kv_cache" not in k},
        )
        for signature in built.signatures
    )
    loaded = loaded_of(causal_lm.Config(length=S), writer.tokenizer, writer.params)
    with pytest.raises(UserError, match="runs transformers, and gpt is none; choose"):
        write(tmp_path, dataclasses.replace(built, signatures=signatures), loaded)
