"""The peer of `finetune`: the same fine-tuning in transformers on PyTorch.

It runs in an environment of its own, so it imports nothing of `lm`. Its argument is a
JSON object; what it measures is its last line, another.
"""

import json
import sys
import time
from pathlib import Path

BEGAN = time.perf_counter()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812


class Pooled(torch.nn.Module):
    """The mean of the last states, and for classes a linear map of it."""

    def __init__(self, backbone, num_classes):
        super().__init__()
        self.backbone = backbone
        self.head = None
        if num_classes:
            size = backbone.config.hidden_size
            self.dropout = torch.nn.Dropout(0.1)
            self.head = torch.nn.Linear(size, num_classes)
            torch.nn.init.normal_(self.head.weight, std=0.02)
            torch.nn.init.zeros_(self.head.bias)

    def forward(self, input_ids, attention_mask, **_):
        """Maps tokens [B, T] to classes [B, C], or to vectors [B, D] of length 1."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        hidden = self.backbone(**inputs).last_hidden_state
        mask = attention_mask[:, :, None].float()
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        if self.head is None:
            return F.normalize(pooled, dim=-1)
        return self.head(self.dropout(pooled))


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def optimizer_of(model, job):
    decayed = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "embeddings" not in name
    ]
    known = {id(parameter) for parameter in decayed}
    others = [p for p in model.parameters() if id(p) not in known]
    groups = [
        {"params": decayed, "weight_decay": job["weight_decay"]},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=job["learning_rate"], betas=(0.9, 0.999))


def batches(number, size, steps, seed):
    rng, order = np.random.default_rng(seed), []
    for _ in range(steps):
        if len(order) < size:
            order = list(rng.permutation(number))
        yield order[:size]
        order = order[size:]


def main():
    job = json.loads(sys.argv[1])
    torch.manual_seed(job["seed"])
    torch.set_num_threads(job["threads"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    backbone = transformers.AutoModel.from_pretrained(
        job["model"], add_pooling_layer=False
    )
    train, test = read(job["train"]), read(job["test"])
    labels = sorted({row["label"] for row in train}) if not job["query"] else []
    model = Pooled(backbone, len(labels))

    def encode(texts, length):
        return tokenizer(
            texts, truncation=True, max_length=length, padding=True, return_tensors="pt"
        )

    optimizer = optimizer_of(model, job)
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, job["warmup_steps"], job["steps"]
    )
    model.train()
    times = []
    for chosen in batches(len(train), job["batch_size"], job["steps"], job["seed"]):
        began = time.perf_counter()
        rows = [train[i] for i in chosen]
        vectors = model(**encode([row["text"] for row in rows], job["length"]))
        if job["query"]:
            queries = [row[job["query"]] for row in rows]
            logits = model(**encode(queries, job["query_length"])) @ vectors.T / 0.05
            own = torch.arange(len(rows))
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        else:
            targets = torch.tensor([labels.index(row["label"]) for row in rows])
            loss = F.cross_entropy(vectors, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    trained = time.perf_counter() - BEGAN
    model.eval()
    with torch.no_grad():

        def outputs(texts, length):
            parts = range(0, len(texts), 64)
            return torch.cat(
                [model(**encode(texts[i : i + 64], length)) for i in parts]
            )

        vectors = outputs([row["text"] for row in test], job["length"])
        if job["query"]:
            queries = [row[job["query"]] for row in test]
            scores = outputs(queries, job["query_length"]) @ vectors.T
            own = scores.diagonal()[:, None]
            score = ((scores > own).sum(1) < 10).float().mean().item()
        else:
            right = [labels.index(row["label"]) for row in test]
            score = (vectors.argmax(1) == torch.tensor(right)).float().mean().item()
    result = {"score": score, "seconds": trained, "step": float(np.median(times))}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
