"""Heads: padding has no part, and backbones keep their names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import tree
from lm.models import MODELS, build_model
from lm.nn.base import replace_known
from lm.nn.heads import POOLINGS, PooledHead, TokenHead, pool

SMALL = {"vocab_size": 20, "emb_dim": 8, "num_layers": 1, "num_heads": 2, "max_len": 16}


@pytest.mark.parametrize("how", POOLINGS)
def test_padding_has_no_part_in_a_pooled_row(how):
    hidden = jax.random.normal(jax.random.key(0), (2, 5, 3))
    segment_ids = jnp.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    pooled = pool(hidden, segment_ids, how)
    noisy = jnp.where(segment_ids[:, :, None] > 0, hidden, 9.0)
    np.testing.assert_array_equal(pool(noisy, segment_ids, how), pooled)
    expected = {
        "first": hidden[0, 0],
        "last": hidden[0, 2],
        "mean": hidden[0, :3].mean(axis=0),
        "max": hidden[0, :3].max(axis=0),
    }
    np.testing.assert_allclose(pooled[0], expected[how], rtol=1e-6)


@pytest.mark.parametrize("how", POOLINGS)
def test_a_row_of_padding_is_finite_and_has_finite_gradients(how):
    gradient = jax.grad(lambda x: pool(x, jnp.zeros((1, 4), int), how).sum())
    assert np.isfinite(gradient(jnp.ones((1, 4, 3)))).all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("head", [PooledHead, TokenHead])
def test_every_backbone_takes_a_head_and_keeps_its_names(name, head):
    backbone = build_model(replace_known(MODELS[name][0](), **SMALL))
    batch = {"inputs": jnp.arange(8)[None], "segment_ids": jnp.ones((1, 8), int)}
    key, both = jax.random.key(0), {"encoder_inputs": batch["inputs"], **batch}
    alone = jax.eval_shape(backbone.init, key, both)
    module = head(backbone, 3)
    params = jax.eval_shape(module.init, key, batch)
    shape = (1, 3) if head is PooledHead else (1, 8, 3)
    assert jax.eval_shape(module.apply, params, batch).shape == shape
    names = set(jax.tree.leaves(tree.names(params["params"])))
    plain = {f"backbone/{n}" for n in jax.tree.leaves(tree.names(alone["params"]))}
    assert names - plain == {"head/kernel/value", "head/bias/value"}
