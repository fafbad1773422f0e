"""The models. A model is one file: a `Config` dataclass and a `Model` module.

Its `architecture` says what tasks it is for: `encoder`, `decoder` or `encoder_decoder`.
"""

from typing import Any

import flax.linen as nn

from lm.models import (
    bert,
    birnn,
    feed_forward,
    gated_cnn,
    glove,
    gpt,
    rnn,
    seq2seq,
    t5,
    textcnn,
    word2vec,
)

# name -> (config dataclass, Linen module). A new model adds its row here.
MODELS: dict[str, tuple[type, Any]] = {
    "gpt": (gpt.Config, gpt.Model),
    "bert": (bert.Config, bert.Model),
    "t5": (t5.Config, t5.Model),
    "glove": (glove.Config, glove.Model),
    "word2vec": (word2vec.Config, word2vec.Model),
    "feed_forward": (feed_forward.Config, feed_forward.Model),
    "textcnn": (textcnn.Config, textcnn.Model),
    "gated_cnn": (gated_cnn.Config, gated_cnn.Model),
    "rnn": (rnn.Config, rnn.Model),
    "birnn": (birnn.Config, birnn.Model),
    "seq2seq": (seq2seq.Config, seq2seq.Model),
}


def build_model(config: Any) -> nn.Module:
    """Returns the module of a model's config."""
    return MODELS[config.name][1](config)
