"""Laws that every model keeps, whatever its options."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import tree
from lm.models import MODELS, build_model
from lm.nn.losses import cross_entropy
from lm.nn.positions import RopeScaling
from lm.nn.transformer import REMAT_POLICIES, stack_layers, unstack_layers
from lm.types import UserError

B, T = 2, 24
# As many words as places, so that a row may have each once.
V = T

SMALL = {"vocab_size": V, "emb_dim": 16, "max_len": 64, "dropout_rate": 0.0}

TRANSFORMERS = ("gpt", "bert", "t5")
STACK = {"num_layers": 2, "num_heads": 4, "attention_dropout_rate": 0.0}

# Every option of the stack stands in one of these, and every law holds for each.
OPTIONS = {
    "learned": {
        "position_encoding": "learned",
        "norm": "layer",
        "use_bias": True,
        "activation": "gelu",
    },
    "sinusoidal": {
        "position_encoding": "sinusoidal",
        "norm_position": "post",
        "activation": "relu",
        "mlp_dim": 24,
    },
    "relative": {
        "position_encoding": "relative",
        "activation": "geglu",
        "tie_embeddings": False,
        "logit_softcap": 5.0,
    },
    "rotary": {
        "position_encoding": "rotary",
        "num_kv_heads": 2,
        "qk_norm": True,
        "activation": "swiglu",
    },
    "window": {
        "num_kv_heads": 1,
        "head_dim": 6,
        "window": 5,
        "attention_softcap": 2.0,
        "activation": "silu",
        "tie_embeddings": True,
    },
    "plain": {
        "position_encoding": "none",
        "activation": "gelu_tanh",
        "init_stddev": 0.2,
        "norm": "layer",
        "norm_position": "pre",
    },
    "experts": {
        "num_experts": 4,
        "experts_per_token": 2,
        "activation": "swiglu",
        "use_bias": True,
    },
    "parallel": {
        "parallel": True,
        "rope_fraction": 0.5,
        "norm": "layer",
        "use_bias": True,
        "attention_scale": 0.3,
    },
    "both": {
        "norm_position": "both",
        "norm_offset": 1.0,
        "qk_norm": True,
        "window": 5,
        "global_every": 2,
        "rope_local_theta": 50.0,
        "rope_scaling": RopeScaling("linear", 2.0),
        "scale_embeddings": True,
        "qkv_bias": True,
    },
    "shared": {
        "share_layers": True,
        "position_encoding": "learned",
        "position_offset": 2,
        "norm_position": "post",
    },
}
RECURRENT = {
    "lstm": {"num_layers": 2, "layer_norm": True},
    "gru": {"cell": "gru", "hidden_dim": 12},
    "rnn": {"cell": "rnn", "tie_embeddings": False, "num_layers": 2, "hidden_dim": 8},
}
# Of the other models: name -> what its options are called -> they.
OTHERS: dict[str, dict[str, dict]] = {
    "glove": {"plain": {}},
    "word2vec": {"plain": {}, "tied": {"tie_embeddings": True}},
    "feed_forward": {"plain": {}, "untied": {"tie_embeddings": False}},
    "textcnn": {
        "small": {"num_filters": 5},
        "even": {"widths": (1, 2, 4), "num_filters": 4, "tie_embeddings": False},
    },
    "gated_cnn": {
        "dense": {"num_layers": 3, "width": 3},
        "dilated": {"num_layers": 4, "width": 2, "dilations": (1, 2, 4)},
    },
    "rnn": RECURRENT,
    "birnn": RECURRENT,
    "seq2seq": {
        **RECURRENT,
        "narrow": {"attention_dim": 6, "init_stddev": 0.2},
    },
}


def with_cases(*architectures):
    """Runs a law for all options of the models of those architectures, or of all."""
    options = dict.fromkeys(TRANSFORMERS, OPTIONS) | OTHERS
    return pytest.mark.parametrize(
        "name,options",
        [
            pytest.param(name, case, id=f"{name}-{called}")
            for name, (_, module) in MODELS.items()
            if module.architecture in (architectures or ARCHITECTURES)
            for called, case in options[name].items()
        ],
    )


ARCHITECTURES = ("encoder", "decoder", "encoder_decoder")
with_models = pytest.mark.parametrize(
    "name", [n for n, (_, m) in MODELS.items() if m.architecture in ARCHITECTURES]
)


def make(name, **options):
    return cached_make(name, tuple(options.items()))


@functools.cache
def cached_make(name, options):
    base = SMALL | (STACK if name in TRANSFORMERS else {})
    model = build_model(MODELS[name][0](**base | dict(options)))

    abstract = jax.eval_shape(model.init, jax.random.key(0), make_batch())["params"]
    rng = np.random.default_rng(0)

    def draw(leaf_name, leaf):
        # Not as at initialisation, where biases are zero and norms have no effect;
        # and by NumPy, since compiling an initialiser takes longer than most laws.
        centre = 1.0 if leaf_name.endswith("scale") else 0.0
        return jnp.asarray(rng.normal(centre, 0.2, leaf.shape), leaf.dtype)

    return model, tree.map_with_names(draw, nn.unbox(abstract))


def make_batch(length=T, rows=B):
    ids = jax.random.randint(jax.random.key(2), (2, rows, length), 0, V)
    return {"inputs": ids[0], "encoder_inputs": ids[1]}


# Equal models share what is compiled; operations one by one compile for longer.
with_model = functools.partial(jax.jit, static_argnums=0)


@with_model
def forward(model, params, batch):
    return model.apply({"params": params}, batch)


@with_model
def logits(model, params, batch):
    return model.apply({"params": params}, batch).logits.dense()


@with_model
def gradients(model, params, batch):
    def loss(params):
        out = model.apply({"params": params}, batch).logits
        return cross_entropy(out, batch["inputs"], jnp.ones((B, T))).objective

    return jax.grad(loss)(params)


def assert_close(a, b, atol=2e-4):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@with_cases("decoder", "encoder_decoder")
def test_cached_decoding_is_the_full_forward(name, options):
    model, params = make(name, **options)
    batch = make_batch()
    full = logits(model, params, batch)
    lengths = jnp.array([3, 7])
    prompt = {
        "inputs": batch["inputs"][:, :8],
        "segment_ids": (jnp.arange(8)[None] < lengths[:, None]).astype(jnp.int32),
        "encoder_inputs": batch["encoder_inputs"],
        "encoder_segment_ids": jnp.ones((B, T), jnp.int32),
    }
    variables = {"params": params}
    prefill = jax.jit(lambda p: model.apply(variables, p, T, method="prefill"))
    step = jax.jit(lambda *a: model.apply(variables, *a, method="step"))
    out, cache = prefill(prompt)
    for i in range(6):
        positions = lengths + i
        expected = jnp.take_along_axis(full, positions[:, None, None] - 1, axis=1)[:, 0]
        np.testing.assert_allclose(out, expected, atol=2e-4)
        tokens = jnp.take_along_axis(batch["inputs"], positions[:, None], axis=1)[:, 0]
        out, cache = step(tokens, positions, cache)


def test_a_prefix_is_read_both_ways_when_decoding():
    model, params = make("gpt")
    batch, lengths = make_batch(), jnp.array([3, 7])
    prefix = jnp.arange(T)[None] < lengths[:, None]
    full = logits(model, params, batch | {"prefix_mask": prefix})
    prompt = {
        "inputs": batch["inputs"][:, :8],
        "segment_ids": prefix[:, :8].astype(jnp.int32),
        "prefix_mask": prefix[:, :8],
    }
    variables = {"params": params}
    prefill = jax.jit(lambda p: model.apply(variables, p, T, method="prefill"))
    step = jax.jit(lambda *a: model.apply(variables, *a, method="step"))
    out, cache = prefill(prompt)
    for i in range(3):
        positions = lengths + i
        expected = jnp.take_along_axis(full, positions[:, None, None] - 1, axis=1)[:, 0]
        np.testing.assert_allclose(out, expected, atol=2e-4)
        tokens = jnp.take_along_axis(batch["inputs"], positions[:, None], axis=1)[:, 0]
        out, cache = step(tokens, positions, cache)


@with_cases("decoder")
def test_causality_by_gradient(name, options):
    model, params = make(name, **options)
    batch = make_batch(rows=1)
    table = params["embedder"]["token"]["embedding"]
    frozen = jax.tree.map(jax.lax.stop_gradient, params)

    def states(offset):
        """Final states as a function of an offset to each token's embedding."""
        # One row of the table a token, so that offsets are a token's own.
        rows = table[batch["inputs"][0]] + offset
        mine = frozen | {
            "embedder": frozen["embedder"] | {"token": {"embedding": rows}}
        }
        ids = {"inputs": jnp.arange(T)[None]}
        return model.apply({"params": mine}, ids).hidden[0].sum(axis=-1)

    jacobian = jax.jit(jax.jacrev(states))(jnp.zeros((T, SMALL["emb_dim"])))
    influence = np.abs(jacobian).sum(axis=-1)
    assert not np.triu(influence, k=1).any()
    window = options.get("window") or T
    num_limited = STACK["num_layers"] if "global_every" not in options else T
    near = getattr(model.config, "reach", window)
    far = getattr(model.config, "reach", 1 + num_limited * (window - 1))
    distance = np.arange(T)[:, None] - np.arange(T)[None]
    assert (influence[(distance >= 0) & (distance < near)] > 0).all()
    assert not influence[distance >= far].any()


@with_cases()
def test_packed_documents_are_as_if_alone(name, options):
    model, params = make(name, **options)
    batch = make_batch()
    cut = 10
    numbers = (jnp.arange(T) >= cut).astype(jnp.int32)
    segments = jnp.broadcast_to(numbers[None] + 1, (B, T))
    positions = jnp.broadcast_to((jnp.arange(T) - cut * numbers)[None], (B, T))
    extra = {"segment_ids": segments, "positions": positions}
    packed = batch | extra | {f"encoder_{k}": v for k, v in extra.items()}
    both = logits(model, params, packed)
    for part in (slice(0, cut), slice(cut, T)):
        alone = {k: v[:, part] for k, v in batch.items()}
        np.testing.assert_allclose(
            both[:, part], logits(model, params, alone), atol=2e-4
        )


@with_cases()
def test_padding_changes_nothing(name, options):
    model, params = make(name, **options)
    batch, size = make_batch(), 9
    real = jnp.broadcast_to(jnp.arange(T)[None] < size, (B, T)).astype(jnp.int32)
    padded = batch | {"segment_ids": real, "encoder_segment_ids": real}
    alone = {k: v[:, :size] for k, v in batch.items()}
    found = logits(model, params, padded)[:, :size]
    assert_close(found, logits(model, params, alone))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_scan_is_loop(name):
    scanned, params = make(name)
    looped = build_model(dataclasses.replace(scanned.config, scan_layers=False))
    loose = unstack_layers(params)
    batch = make_batch()
    assert_close(logits(scanned, params, batch), logits(looped, loose, batch))
    assert_close(
        gradients(scanned, params, batch), stack_layers(gradients(looped, loose, batch))
    )
    abstract = jax.eval_shape(looped.init, jax.random.key(0), batch)["params"]
    assert tree.names(nn.unbox(abstract)) == tree.names(loose)


@pytest.mark.parametrize("unroll", [2, 9])
def test_unrolled_is_scanned(unroll):
    plain, params = make("gpt")
    model = build_model(dataclasses.replace(plain.config, scan_unroll=unroll))
    batch = make_batch()
    assert_close(gradients(plain, params, batch), gradients(model, params, batch))


@pytest.mark.parametrize(
    "name,remat,scan",
    [
        *(("gpt", remat, True) for remat in REMAT_POLICIES if remat != "none"),
        ("gpt", "full", False),
        ("bert", "full", True),
        ("t5", "full", True),
    ],
)
def test_remat_is_none(name, remat, scan):
    plain, params = make(name, scan_layers=scan)
    model = build_model(dataclasses.replace(plain.config, remat=remat))
    batch = make_batch()
    assert_close(gradients(plain, params, batch), gradients(model, params, batch))


@with_models
def test_bfloat16_is_near_float32_and_parameters_stay_float32(name):
    model, params = make(name)
    half = build_model(dataclasses.replace(model.config, dtype="bfloat16"))
    batch = make_batch()
    a, b = logits(model, params, batch), logits(half, params, batch)
    assert b.dtype == jnp.float32
    assert float(jnp.abs(a - b).mean()) < 0.1 * float(a.std())
    abstract = jax.eval_shape(half.init, jax.random.key(0), batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}


@with_models
def test_dropout_is_off_unless_asked_for(name):
    rates = ("dropout_rate", "attention_dropout_rate")
    known = {field.name for field in dataclasses.fields(MODELS[name][0])}
    model, params = make(name, **{rate: 0.3 for rate in rates if rate in known})
    batch = make_batch()
    plain, plain_params = make(name)
    assert tree.names(params) == tree.names(plain_params)
    assert_close(logits(model, params, batch), logits(plain, params, batch))

    @jax.jit
    def dropped(seed):
        rngs = {"dropout": jax.random.key(seed)}
        out = model.apply({"params": params}, batch, deterministic=False, rngs=rngs)
        return out.hidden

    assert float(jnp.abs(dropped(0) - dropped(1)).max()) > 1e-2
    np.testing.assert_array_equal(dropped(0), dropped(0))


def test_prefix_sees_both_ways_and_the_rest_does_not():
    model, params = make("gpt")
    batch = make_batch()
    prefix = jnp.broadcast_to(jnp.arange(T)[None] < 6, (B, T))
    out = logits(model, params, batch | {"prefix_mask": prefix})
    changed = batch["inputs"].at[:, 5].add(1) % V
    other = logits(model, params, {"inputs": changed, "prefix_mask": prefix})
    assert (np.abs(out - other).max(axis=-1)[:, :5] > 1e-4).all()
    changed = batch["inputs"].at[:, 12].add(1) % V
    other = logits(model, params, {"inputs": changed, "prefix_mask": prefix})
    np.testing.assert_allclose(out[:, :12], other[:, :12], atol=1e-6)


def test_bert_predicts_at_the_masked_positions():
    model, params = make("bert")
    batch = make_batch()
    places = jnp.array([[3, 0, 7], [1, 1, 20]])
    some = logits(model, params, batch | {"masked_positions": places})
    every = logits(model, params, batch)
    np.testing.assert_allclose(
        some, jnp.take_along_axis(every, places[:, :, None], axis=1), atol=1e-5
    )


def test_bert_tells_types_apart():
    model, params = make("bert")
    batch = make_batch()
    types = jnp.ones_like(batch["inputs"])
    a, b = (
        logits(model, params, batch),
        logits(model, params, batch | {"type_ids": types}),
    )
    assert float(jnp.abs(a - b).max()) > 1e-2


def test_t5_layers_may_differ():
    model, params = make("t5", num_encoder_layers=1, num_decoder_layers=2)
    kernel = ("attention", "query", "kernel")
    for side, layers in (("encoder", 1), ("decoder", 2)):
        leaf = params[side]["layers"]
        for key in kernel:
            leaf = leaf[key]
        assert leaf.shape[0] == layers


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "relative", "rotary"])
def test_positions_matter(kind):
    model, params = make("bert", **OPTIONS[kind])
    batch = {"inputs": jnp.ones((1, 6), jnp.int32).at[0, 0].set(2)}
    hidden = forward(model, params, batch).hidden[0]
    assert float(jnp.abs(hidden[3] - hidden[4]).max()) > 1e-3


@pytest.mark.parametrize(
    "options,message",
    [
        ({"activation": "gelu_exact"}, "did you mean 'gelu_tanh'"),
        ({"num_heads": 3}, "emb_dim 16 does not divide"),
        ({"num_kv_heads": 3}, "num_heads 4 does not divide"),
        ({"head_dim": 5}, "even head_dim"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        MODELS["gpt"][0](**SMALL | STACK | options)
