"""The peer of `train_step`: the same training step in transformers on PyTorch.

It runs in an environment of its own, so it imports nothing of `lm`. For each line
`n` on standard input it takes n steps and prints the seconds they took.
"""

import json
import resource
import sys
import time

BEGAN = time.perf_counter()

import torch  # noqa: E402
import transformers  # noqa: E402


def build(kind, vocab_size, layers, width, heads, length):
    if kind == "gpt":
        config = transformers.GPT2Config(
            vocab_size=vocab_size,
            n_positions=length,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
        return transformers.GPT2LMHeadModel(config)
    config = transformers.BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForMaskedLM(config)


def main():
    shape = json.loads(sys.argv[1])
    batch_size, bfloat16 = shape.pop("batch_size"), shape.pop("bfloat16")
    torch.manual_seed(0)
    model = build(**shape)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    size = (batch_size, shape["length"])
    tokens = torch.randint(5, shape["vocab_size"], size)
    labels = tokens
    if shape["kind"] == "bert":
        labels = torch.where(torch.rand(size) < 0.15, tokens, -100)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = model(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    step()
    first = time.perf_counter() - BEGAN
    print(json.dumps({"first_step": first}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step()
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
