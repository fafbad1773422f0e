"""Runs an exported encoder: ai-edge-litert, NumPy and the tokenizer's library suffice.

    python client.py "The match ended in a draw."
    python client.py "Who won?" "The Broncos won."          # a task of two texts

This file is copied into every artefact and needs nothing else of where it comes from.
"""

import json
import sys
from pathlib import Path

import numpy as np


def valid(text):
    """Returns the text with U+FFFD for half a character, which has no UTF-8."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class Tokenizer:
    """Text to ids: a `tokenizer.json`, SentencePiece's `tokenizer.model`, or bytes."""

    def __init__(self, folder):
        if (folder / "tokenizer.json").exists():
            from tokenizers import Tokenizer as Fast

            fast = Fast.from_file(str(folder / "tokenizer.json"))
            self.encode = lambda text: fast.encode(text, add_special_tokens=False).ids
        elif (folder / "tokenizer.model").exists():
            from sentencepiece import SentencePieceProcessor

            model = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
            self.encode = model.encode
        else:
            config = json.loads((folder / "tokenizer_config.json").read_text())
            first = 5 + config["num_sentinels"]
            self.encode = lambda text: [first + byte for byte in text.encode()]


class Model:
    """A model and all that is around it."""

    def __init__(self, folder, num_threads=2):
        from ai_edge_litert.interpreter import Interpreter

        folder = Path(folder)
        self.about = json.loads((folder / "signature.json").read_text())
        self.tokenizer = Tokenizer(folder / "tokenizer")
        path = str(folder / "model.tflite")
        interpreter = Interpreter(model_path=path, num_threads=num_threads)
        self._runners = {
            signature["length"]: interpreter.get_signature_runner(signature["name"])
            for signature in self.about["signatures"]
        }

    def row(self, *texts):
        """Returns the inputs [1, T] of one or two texts, as short as they may be."""
        marks, longest = self.about["marks"], max(self._runners)
        parts = [list(self.tokenizer.encode(valid(text))) for text in texts]
        room = longest - 1 - len(parts)
        if len(parts) == 2:  # the longer is cut first
            of_b = min(len(parts[1]), max(room - len(parts[0]), room // 2))
            parts = [parts[0][: room - of_b], parts[1][:of_b]]
        ids, types = list(marks["bos"]), [0] * len(marks["bos"])
        for number, part in enumerate(parts):
            ids += [*part[:room], *marks["eos"]]
            types += [number] * (len(ids) - len(types))
        length = min(size for size in self._runners if size >= len(ids))
        row = np.zeros((3, 1, length), np.int32)
        row[0] = marks["pad"]
        row[:, 0, : len(ids)] = ids, [1] * len(ids), types
        return dict(zip(("inputs", "segment_ids", "type_ids"), row))

    def run(self, row):
        """Returns what the model makes of a row: arrays [1, …]."""
        runner = self._runners[row["inputs"].shape[1]]
        return runner(**{name: row[name] for name in runner.get_input_details()})

    def predict(self, *texts):
        """Returns a label or labels, with the probabilities of all, or a number."""
        about, outputs = self.about, self.run(self.row(*texts))
        if "value" in outputs:
            mean, deviation = about["moments"]
            return {"value": mean + deviation * float(outputs["value"][0])}
        shares = dict(zip(about["labels"], outputs["probabilities"][0].tolist()))
        if about["thresholds"]:
            likely = zip(shares, about["thresholds"])
            found = [name for name, least in likely if shares[name] >= least]
            return {"labels": found, "probabilities": shares}
        return {
            "label": max(shares, key=lambda name: shares[name]),
            "probabilities": shares,
        }


if __name__ == "__main__":
    model = Model(Path(__file__).parent)
    print(json.dumps(model.predict(*sys.argv[1:]), ensure_ascii=False))
