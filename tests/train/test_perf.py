"""The arithmetic of a step, counted by hand."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models import feed_forward, gated_cnn, gpt, t5
from lm.nn.heads import PooledHead
from lm.train.perf import step_flops

B, T, S, V, D, F, L = 3, 8, 5, 11, 4, 16, 2


def flops(module, config, **shapes):
    batch = {name: jnp.zeros(shape, int) for name, shape in shapes.items()}
    boxed = jax.eval_shape(module.init, jax.random.key(0), batch)["params"]
    return step_flops(config, nn.unbox(boxed), shapes)


def test_a_decoder_attends_over_its_row():
    config = gpt.Config(vocab_size=V, emb_dim=D, num_layers=L, num_heads=2, mlp_dim=F)
    kernels = L * (4 * D * D + 2 * D * F) + V * D
    attention = 12 * D * L * T
    expected = B * T * (6 * kernels + attention)
    assert flops(gpt.Model(config), config, inputs=(B, T)) == expected


def test_an_encoder_decoder_attends_over_both():
    config = t5.Config(
        **{"vocab_size": V, "emb_dim": D, "num_layers": L, "num_heads": 2},
        **{"mlp_dim": F, "activation": "relu", "num_encoder_layers": 1},
    )
    layer = 4 * D * D + 2 * D * F
    read = layer + L * 2 * D * D  # keys and values of cross-attention among them
    written = L * (layer + 2 * D * D) + V * D
    attention = 12 * D * (S * S + L * T * (T + S))
    expected = B * (6 * (S * read + T * written) + attention)
    shapes = {"inputs": (B, T), "encoder_inputs": (B, S)}
    assert flops(t5.Model(config), config, **shapes) == expected


def test_a_convolution_reads_a_window_at_every_token():
    config = gated_cnn.Config(vocab_size=V, emb_dim=D, num_layers=L, width=3)
    kernels = L * 3 * D * 2 * D + V * D
    found = flops(gated_cnn.Model(config), config, inputs=(B, T))
    assert found == 6 * B * T * kernels


def test_hidden_layers_of_a_head_read_a_row_once():
    config = feed_forward.Config(vocab_size=V, emb_dim=D)
    model = feed_forward.Model(config)
    with_layers = PooledHead(model, 3, "mean", activation="relu", num_layers=2)
    plain = PooledHead(model, 3, "mean")
    more, less = (flops(each, config, inputs=(B, T)) for each in (with_layers, plain))
    assert more - less == 6 * B * 2 * D * D


def test_a_token_meets_some_of_the_experts():
    config = gpt.Config(vocab_size=V, emb_dim=D, num_layers=L, num_heads=2, mlp_dim=F)
    config = dataclasses.replace(config, num_experts=8, experts_per_token=2)
    kernels = L * (4 * D * D + D * 8 + 2 * 2 * D * F) + V * D
    expected = B * T * (6 * kernels + 12 * D * L * T)
    assert flops(gpt.Model(config), config, inputs=(B, T)) == expected
