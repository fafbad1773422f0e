"""The peer of `export`: an encoder's forward pass in transformers on PyTorch.

It runs in an environment of its own, so it imports nothing of `lm`. For each line `n`
on standard input it runs n rows and prints the median of their seconds.
"""

import json
import statistics
import sys
import time

import torch
import transformers


def main():
    shape = json.loads(sys.argv[1])
    torch.set_num_threads(shape.pop("threads"))
    length = shape["max_position_embeddings"]
    config = transformers.BertConfig(**shape, num_labels=5)
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(5, shape["vocab_size"], (1, length))
    mask = torch.ones_like(ids)

    def run():
        with torch.inference_mode():
            return model(input_ids=ids, attention_mask=mask).logits.numpy()

    run()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
        print(json.dumps({"seconds": statistics.median(seconds)}), flush=True)


if __name__ == "__main__":
    main()
