import jax
import jax.numpy as jnp

from lm.nn.layers import Embed


def test_gradients_of_a_frequent_token_add_up_in_float32():
    ids = jnp.zeros(400, jnp.int32)  # bfloat16 counts to 256
    embed = Embed(2, 4, dtype="bfloat16")
    params = embed.init(jax.random.key(0), ids)
    grads = jax.grad(lambda p: embed.apply(p, ids).astype(jnp.float32).sum())(params)
    assert jax.tree.leaves(grads)[0].tolist() == [[400.0] * 4, [0.0] * 4]
