#!/usr/bin/env bash
# The whole pipeline on real text, in minutes on a CPU: fetch, tokenise, pretrain a GPT
# and a BERT, kill and resume, evaluate, generate, fine-tune the BERT, export it. `make
# demo` installs and runs it.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=.venv/bin/python
demo=runs/demo
tokenizer=data/tokenizers/kjv

say() { printf '\n== %s\n' "$*"; }

train_gpt=("$python" -m lm.train --config=configs/gpt_tiny.py --workdir="$demo/gpt")
train_bert=("$python" -m lm.train --config=configs/bert_tiny.py --workdir="$demo/bert")

say "Fetch a real corpus: the King James Bible"
"$python" -m tools.fetch_data kjv

say "Train a tokenizer on it"
[ -d "$tokenizer" ] || "$python" -m tools.train_tokenizer --source=tfds:kjv \
  --kind=unigram --vocab-size=2048 --output="$tokenizer"

say "Pretrain a GPT, and kill it (kill -9) once it has a checkpoint"
"${train_gpt[@]}" &
pid=$!
until [ -e "$demo/gpt/checkpoints/200" ] || ! kill -0 "$pid" 2>/dev/null; do
  sleep 1
done
kill -9 "$pid" 2>/dev/null || true
wait "$pid" 2>/dev/null || true

say "The same command goes on from the checkpoint"
"${train_gpt[@]}"

say "Pretrain a BERT"
"${train_bert[@]}"

say "Evaluate both on text that neither has seen"
for model in gpt bert; do
  "$python" -m lm.evaluate --workdir="$demo/$model" --split=test
done

say "Generate"
for prompt in "In the beginning" "And Jesus said unto them,"; do
  "$python" -m lm.generate --workdir="$demo/gpt" --prompt="$prompt" \
    --temperature=0.8 --top-p=0.95 --max-new-tokens=60
done

say "Fine-tune the BERT: the topic of a news article, one of five"
"$python" -m tools.fetch_data bbc
"$python" -m lm.train --config=configs/bbc.py --workdir="$demo/classifier" \
  --config.init_from="$demo/bert" --config.data.tokenizer="$tokenizer" \
  --config.task.length=128 --config.optim.learning_rate=1e-3 \
  --config.num_train_steps=240 --config.eval_every_steps=60

say "Evaluate it, beside a linear model of tf-idf, and predict"
"$python" -m experiments.baseline --workdir="$demo/classifier" --split=test
"$python" -m lm.evaluate --workdir="$demo/classifier" --split=test
"$python" -m lm.predict --workdir="$demo/classifier" \
  --text="The striker scored twice, and the match ended in a draw."

say "Export it to TF Lite in int8, and classify with that file alone"
# One of the 194 texts that it is proven on is half a point.
"$python" -m tools.export --workdir="$demo/classifier" --quantize=int8 --overwrite \
  --tolerance=0.02
"$python" "$demo/classifier/export/tflite-int8/client.py" \
  "The striker scored twice, and the match ended in a draw."

say "What was made"
"$python" -m tools.inspect "$demo/gpt" "$demo/bert" "$demo/classifier"
cat <<END

Where to look next:
  $demo/classifier/report-test.html     scores, intervals, mistakes: open it in a browser
  $demo/classifier/export/tflite-int8   the TF Lite file, and what it needs
  $demo/*/metrics.jsonl     every number of the runs, a JSON object a line
  .venv/bin/tensorboard --logdir=$demo
  .venv/bin/python -m lm.generate --workdir=$demo/gpt      type a prompt
  README.md                 train on your own text
END
