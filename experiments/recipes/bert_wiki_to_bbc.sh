#!/usr/bin/env bash
# What pretraining is worth: a tiny BERT learns from the leads of 10,000 Wikipedia
# articles, then topics of BBC news, beside the same model that learns topics alone.
# Half an hour on 2 CPU cores; a look at all of it takes a few minutes:
#
#     PRETRAIN_STEPS=10 FINETUNE_STEPS=10 OUT=runs/look \
#       bash experiments/recipes/bert_wiki_to_bbc.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
out=${OUT:-runs/wiki_to_bbc}
pretrain_steps=${PRETRAIN_STEPS:-2000}
finetune_steps=${FINETUNE_STEPS:-240}

say() { printf '\n== %s\n' "$*"; }

say "Fetch both corpora"
"$python" -m tools.fetch_data wiki
"$python" -m tools.fetch_data bbc

say "Train a tokenizer on the one that is pretrained on"
[ -d "$out/tokenizer" ] || "$python" -m tools.train_tokenizer --source=tfds:wiki \
  --kind=wordpiece --normalization=nfkc_cf --vocab-size=8192 --output="$out/tokenizer"

say "Pretrain a BERT, 4 x 128, on masked words"
"$python" -m lm.train --config=configs/bert_tiny.py --workdir="$out/bert" \
  --config.data.sources=tfds:wiki --config.data.tokenizer="$out/tokenizer" \
  --config.model.vocab_size=8192 --config.model.max_len=256 --config.task.length=256 \
  --config.batch_size=16 --config.num_train_steps="$pretrain_steps" \
  --config.warmup_steps=$((pretrain_steps / 10))
"$python" -m lm.evaluate --workdir="$out/bert" --split=test

# The model's size is the BERT's in both; nothing differs but where it begins.
finetune() {
  "$python" -m lm.train --config=configs/bbc.py --workdir="$out/$1" \
    --config.data.tokenizer="$out/tokenizer" --config.model.num_layers=4 \
    --config.optim.learning_rate=1e-3 --config.num_train_steps="$finetune_steps" \
    --config.warmup_steps=$((finetune_steps / 10)) --config.eval_every_steps=40 "${@:2}"
}

say "Fine-tune it: the topic of a news article, one of five"
finetune finetuned --config.init_from="$out/bert"

say "Train the same model from scratch"
finetune scratch

say "Evaluate on articles that neither has seen"
"$python" -m lm.evaluate --workdir="$out/finetuned" --split=test
"$python" -m lm.evaluate --workdir="$out/scratch" --split=test

say "Is the difference more than chance? The paired bootstrap tells"
"$python" -m experiments.compare "$out/scratch" "$out/finetuned" --split=test

say "Export it to TF Lite in int8, and classify with that file alone"
# One of the 194 texts that it is proven on is half a point.
"$python" -m tools.export --workdir="$out/finetuned" --quantize=int8 --overwrite \
  --tolerance=0.02
"$python" "$out/finetuned/export/tflite-int8/client.py" \
  "The striker scored twice, and the match ended in a draw."
