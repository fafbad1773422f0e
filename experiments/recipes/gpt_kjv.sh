#!/usr/bin/env bash
# A GPT from raw text to a phone: clean the King James Bible, train a tokenizer and a
# decoder, write with it, and export it for LiteRT-LM. SOURCE may be other text, such as
# 'my/*.txt'. Seven minutes on 2 CPU cores; a look at all of it takes one or two:
#
#     STEPS=20 OUT=runs/look bash experiments/recipes/gpt_kjv.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
out=${OUT:-runs/gpt_kjv}
source=${SOURCE:-tfds:kjv}
steps=${STEPS:-600}
prompt=${PROMPT:-In the beginning}

say() { printf '\n== %s\n' "$*"; }

say "Fetch the corpus"
[ "$source" != tfds:kjv ] || "$python" -m tools.fetch_data kjv --data-dir="$out/data"

say "Clean it, and leave out what is in it twice"
"$python" -m tools.prepare_data --source="$source" --name=clean --data-dir="$out/data" \
  --overwrite

say "Train a tokenizer on it"
[ -d "$out/tokenizer" ] || "$python" -m tools.train_tokenizer --source=tfds:clean \
  --data-dir="$out/data" --vocab-size=2048 --output="$out/tokenizer"

say "Train a GPT, 4 x 128"
"$python" -m lm.train --config=configs/gpt_tiny.py --workdir="$out/gpt" \
  --config.data.sources=tfds:clean --config.data.data_dir="$out/data" \
  --config.data.tokenizer="$out/tokenizer" --config.num_train_steps="$steps" \
  --config.warmup_steps=$((steps / 10))

say "Evaluate it on text that it has not seen"
"$python" -m lm.evaluate --workdir="$out/gpt" --split=test

say "Write"
"$python" -m lm.generate --workdir="$out/gpt" --prompt="$prompt" --temperature=0.8 \
  --top-p=0.95 --max-new-tokens=60

say "Export it for LiteRT-LM in int8, and write with that file alone"
"$python" -m tools.export --workdir="$out/gpt" --format=litertlm --quantize=int8 \
  --overwrite
"$python" "$out/gpt/export/litertlm-int8/client.py" "$prompt"
