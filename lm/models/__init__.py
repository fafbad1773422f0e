"""The models. A model is one file: a `Config` dataclass and a `Model` module.

Its `architecture` says what tasks it is for: `encoder`, `decoder` or `encoder_decoder`.
"""

from typing import Any

import flax.linen as nn

from lm.models import bert, birnn, gpt, rnn, seq2seq, t5

# name -> (config dataclass, Linen module). A new model adds its row here.
MODELS: dict[str, tuple[type, Any]] = {
    "gpt": (gpt.Config, gpt.Model),
    "bert": (bert.Config, bert.Model),
    "t5": (t5.Config, t5.Model),
    "rnn": (rnn.Config, rnn.Model),
    "birnn": (birnn.Config, birnn.Model),
    "seq2seq": (seq2seq.Config, seq2seq.Model),
}


def build_model(config: Any) -> nn.Module:
    """Returns the module of a model's config."""
    return MODELS[config.name][1](config)
