"""Linear-chain conditional random fields: tags that are predicted together.

Lafferty et al. (2001), https://repository.upenn.edu/cis_papers/159, equation
1. A chain's tags y_1, …, y_n have the score

    begin[y_1] + Σ_t unary_t[y_t] + Σ_t transitions[y_t, y_{t+1}] + end[y_n]

and a probability in proportion to its exponential. A chain is made of those tokens of
a document that are wanted; others are passed over. Axes: B batch, T time, C tags.
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from lm.types import Array

# The score of a tag that may not be.
NEVER = -1e30

# From [B, C, C], summed or maximised over the first C, to [B, C].
Reduce = Callable[..., Array]


@flax.struct.dataclass
class Chains:
    """The scores of tags, of all chains of a batch.

    Attributes:
        unary: [B, T, C].
        transitions: [C, C], from one tag to the next.
        begin: [C], of the first tag.
        end: [C], of the last.
        documents: [B, T] int, the number of a token's document where it is wanted, and
            0 where not. Along a row it does not fall.
    """

    unary: Array
    transitions: Array
    begin: Array
    end: Array
    documents: Array

    def log_likelihood(self, tags: Array) -> Array:
        """Returns log p(tags) [B], summed over a row's chains, of tags [B, T].

        It is the log of the share that one way has in the sum over all, by the forward
        algorithm (Lafferty et al., section 3).
        """
        right = jax.nn.one_hot(tags, self.unary.shape[2], dtype=bool)
        one = dataclasses.replace(self, unary=jnp.where(right, self.unary, NEVER))
        return one.log_partition() - self.log_partition()

    def log_partition(self) -> Array:
        """Returns log Z [B], summed over a row's chains."""
        _, log_z = self._forward(jax.nn.logsumexp)
        return log_z

    def marginals(self) -> Array:
        """Returns p(y_t) [B, T, C] of each wanted token alone: forward and backward."""
        forward, _ = self._forward(jax.nn.logsumexp)
        mirrored = dataclasses.replace(
            self, transitions=self.transitions.T, begin=self.end, end=self.begin
        )
        backward, _ = mirrored._forward(jax.nn.logsumexp, reverse=True)
        # Both have what the token itself says.
        return jax.nn.softmax(forward + backward - self.unary)

    def best(self) -> Array:
        """Returns the likeliest tags [B, T]: Viterbi (1967).

        https://doi.org/10.1109/TIT.1967.1054010. What stands where no token is wanted
        means nothing.
        """
        scores, _ = self._forward(jnp.max)
        C = self.unary.shape[2]

        def step(after, now):
            tag, document = after
            scores, here = now
            to_next = tag @ self.transitions.T  # those to the tag that was chosen
            follows = jnp.where(here == document, to_next, self.end[None])
            chosen = (scores + follows).argmax(axis=-1)
            tag = jnp.where(here > 0, jax.nn.one_hot(chosen, C), tag)
            return (tag, jnp.where(here > 0, here, document)), chosen

        rows = jnp.zeros_like(self.documents[:, :1])
        none = (jnp.zeros_like(scores[:, 0]), rows)
        xs = (scores.swapaxes(0, 1), self.documents.T[:, :, None])
        _, chosen = jax.lax.scan(step, none, xs, reverse=True)
        return chosen.T

    def _forward(self, reduce: Reduce, reverse: bool = False) -> tuple[Array, Array]:
        """Reduces over all tags of the tokens before; in `reverse`, of those behind.

        Returns:
            For each wanted token and tag, over all ways to there, [B, T, C]; and over
            all ways of whole chains, summed over a row's, [B].
        """

        def close(scores: Array, document: Array) -> Array:
            whole = reduce(scores + self.end[None], axis=-1, keepdims=True)
            return jnp.where(document > 0, whole, 0)

        def step(before, now):
            scores, document, total = before
            unary, here = now
            ways = reduce(scores[:, :, None] + self.transitions[None], axis=1)
            goes_on = here == document
            new = jnp.where(goes_on, ways, self.begin[None]) + unary
            total += jnp.where(
                (here > 0) & ~goes_on, close(scores, document), jnp.zeros_like(total)
            )
            scores = jnp.where(here > 0, new, scores)
            document = jnp.where(here > 0, here, document)
            return (scores, document, total), scores

        B, _, C = self.unary.shape
        rows = jnp.zeros_like(self.documents[:, :1])
        none = (jnp.zeros((B, C)), rows, jnp.zeros((B, 1)))
        xs = (self.unary.swapaxes(0, 1), self.documents.T[:, :, None])
        (scores, document, total), all_scores = jax.lax.scan(
            step, none, xs, reverse=reverse
        )
        total += close(scores, document)
        return all_scores.swapaxes(0, 1), total[:, 0]
