"""The attention of the recurrent encoder-decoder, beside its formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models import birnn, build_model, rnn, seq2seq
from lm.train.perf import step_flops
from lm.train.state import init_params

B, T, S, V = 2, 5, 7, 11
SIZES = {"vocab_size": V, "emb_dim": 4, "hidden_dim": 6, "max_len": 16}


def make(config):
    model = build_model(config)
    shapes = jax.eval_shape(lambda seed: init_params(model, seed), 0)
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32)

    return model, jax.tree.map(draw, shapes)


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_it_reads_what_it_attends_to():
    config = seq2seq.Config(cell="gru", attention_dim=5, **SIZES)
    model, params = make(config)
    ids = np.random.default_rng(1).integers(0, V, (2, B, S))
    lengths = np.array([4, S])
    sources = (np.arange(S)[None] < lengths[:, None]).astype(np.int32)
    batch = {
        "encoder_inputs": jnp.asarray(ids[0]),
        "encoder_segment_ids": jnp.asarray(sources),
        "inputs": jnp.asarray(ids[1, :, :T]),
        "segment_ids": jnp.ones((B, T), jnp.int32),
    }

    @jax.jit
    def run(params):
        read = {"inputs": batch["encoder_inputs"], "segment_ids": sources}
        memory = model.apply({"params": params}, read, method="hidden")
        return model.apply({"params": params}, batch).logits.dense(), memory

    logits, memory = run(params)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    table = p["embedder"]["token"]["embedding"]
    layer, attention = p["decoder"]["layers_0"]["forward"], p["cross_attention"]
    for row in range(B):
        h = np.asarray(memory[row, : lengths[row]], np.float64)
        state = np.zeros(6)
        for t in range(T):
            # Bahdanau et al. (2015), section A.1.2 and equations 5 and 6.
            keys = h @ attention["key"]["kernel"] + attention["key"]["bias"]
            energy = np.tanh(state @ attention["query_kernel"] + keys)
            weights = softmax((energy @ attention["score_kernel"])[:, 0])
            context = weights @ h
            # Section A.1.1.
            word = table[ids[1, row, t]]
            x = word @ layer["input"]["kernel"] + layer["input"]["bias"]
            x = x + context @ layer["read_kernel"]
            (x_r, x_z, x_n), u = np.split(x, 3), state @ layer["kernel"]
            u_r, u_z, u_n = np.split(u, 3)
            r, z = sigmoid(x_r + u_r), sigmoid(x_z + u_z)
            state = z * state + (1 - z) * np.tanh(x_n + r * u_n)
            said = np.concatenate([state, context, word])
            out = np.tanh(said @ p["transform"]["kernel"] + p["transform"]["bias"])
            np.testing.assert_allclose(out @ table.T, logits[row, t], atol=1e-4)


@pytest.mark.parametrize(
    "config, parts",
    [
        # Gates of an LSTM, of inputs and of states; then D from R; then V.
        (rnn.Config(**SIZES), 4 * 6 * (4 + 6) + 6 * 4 + 4 * V),
        # Of both directions.
        (birnn.Config(cell="rnn", **SIZES), 2 * 6 * (4 + 6) + 12 * 4 + 4 * V),
    ],
    ids=["rnn", "birnn"],
)
def test_a_steps_flops_are_those_of_its_kernels(config, parts):
    _, params = make(config)
    assert step_flops(config, params, {"inputs": (B, T)}) == 6 * B * T * parts


def test_flops_of_an_encoder_decoder_have_those_of_attention():
    config = seq2seq.Config(cell="rnn", **SIZES)
    _, params = make(config)
    encoder = 2 * 6 * (4 + 6) + 12 * 6  # with a key of each token
    decoder = 6 * (4 + 12 + 6) + 6 * 6 + 6 + (6 + 12 + 4) * 4 + 4 * V
    expected = S * encoder + T * decoder + S * T * (6 + 2 * 6)
    shapes = {"inputs": (B, T), "encoder_inputs": (B, S)}
    assert step_flops(config, params, shapes) == 6 * B * expected
