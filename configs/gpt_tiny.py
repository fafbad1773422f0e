"""A small modern decoder on the King James Bible, in minutes on a CPU.

Model: Radford et al. (2019), with rotary positions, RMSNorm and a squared scale of
one minute: 4 layers x 128.

    python -m tools.fetch_data kjv
    python -m tools.train_tokenizer --source=tfds:kjv --vocab-size=2048 \\
        --output=data/tokenizers/kjv
    python -m lm.train --config=configs/gpt_tiny.py --workdir=runs/gpt_tiny
"""
