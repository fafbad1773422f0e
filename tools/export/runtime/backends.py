"""What runs a model's functions: one class for each format, all with the same method."""

from pathlib import Path


class TfLite:
    """A TF Lite file, run by ai-edge-litert."""

    def __init__(self, path, num_threads=2):
        """Opens the file."""
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=str(path), num_threads=num_threads)
        self._runners = {}

    def run(self, signature, inputs):
        """Returns the outputs of a signature, arrays by their names.

        Args:
            signature: Its name.
            inputs: Arrays by their names; what the signature does not take is ignored.
        """
        if signature not in self._runners:
            runner = self._interpreter.get_signature_runner(signature)
            self._runners[signature] = runner, list(runner.get_input_details())
        runner, names = self._runners[signature]
        return runner(**{name: inputs[name] for name in names})


# The name of a model's file or folder, and what opens it.
BACKENDS = {"model.tflite": TfLite}


def open_model(folder, num_threads=2):
    """Opens the model of an artefact's folder, whatever its format."""
    for name, backend in BACKENDS.items():
        if (Path(folder) / name).exists():
            return backend(Path(folder) / name, num_threads)
    raise FileNotFoundError(f"{folder} has none of {', '.join(BACKENDS)}")
