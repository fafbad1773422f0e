"""What runs a model's functions: a class for each format, all with the same method."""

import contextlib
import importlib.util
import json
from pathlib import Path

import numpy as np


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
            self._runners[signature] = (
                runner,
                list(runner.get_input_details()),
                {k: v["quantization"] for k, v in runner.get_output_details().items()},
            )
        runner, names, scales = self._runners[signature]
        outputs = runner(**{name: inputs[name] for name in names})
        # In `int8_static` outputs are whole numbers, scale · (value - zero).
        return {
            name: (value - np.float32(scales[name][1])) * np.float32(scales[name][0])
            if value.dtype == np.int8
            else value
            for name, value in outputs.items()
        }


class Onnx:
    """A folder of ONNX files, one for each signature, run by onnxruntime."""

    def __init__(self, path, num_threads=2):
        """Keeps where the files are; each is opened when it is first run."""
        self._path = Path(path)
        self._num_threads = num_threads
        self._sessions = {}

    def run(self, signature, inputs):
        """Returns the outputs of a signature; see `TfLite`."""
        if signature not in self._sessions:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self._num_threads
            # All that it says at this level is what to try for more speed.
            options.log_severity_level = 3
            session = onnxruntime.InferenceSession(
                str(self._path / f"{signature}.onnx"),
                options,
                providers=["CPUExecutionProvider"],
            )
            # A cache that comes in and goes out is `next_` as an output.
            self._sessions[signature] = (
                session,
                [each.name for each in session.get_inputs()],
                [each.name.removeprefix("next_") for each in session.get_outputs()],
            )
        session, names, results = self._sessions[signature]
        values = session.run(None, {name: inputs[name] for name in names})
        return dict(zip(results, values))


class SavedModel:
    """A SavedModel, run by TensorFlow; of one that takes text, what takes tokens."""

    def __init__(self, path, num_threads=2):
        """Opens the folder. TensorFlow's threads are set before it begins to run."""
        import tensorflow as tf

        if importlib.util.find_spec("tensorflow_text"):
            importlib.import_module("tensorflow_text")  # has its tokenizers
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        self._constant = tf.constant
        self._model = tf.saved_model.load(str(path))

    def run(self, signature, inputs):
        """Returns the outputs of a signature; see `TfLite`."""
        functions = self._model.signatures
        if signature == "serving_default" and "ids" in functions:
            signature = "ids"
        function = functions[signature]
        specs = function.structured_input_signature[1]
        tensors = {n: self._constant(inputs[n], s.dtype) for n, s in specs.items()}
        return {name: each.numpy() for name, each in function(**tensors).items()}

    def of_text(self, fields):
        """Returns the outputs for an example's texts; None if it takes tokens alone."""
        function = self._model.signatures.get("serving_default")
        names = function.structured_input_signature[1] if function else {}
        if "text" not in names:
            return None
        # Half a character has no UTF-8.
        texts = {
            name: self._constant([fields[name].encode(errors="replace")])
            for name in names
        }
        return {name: each.numpy()[0] for name, each in function(**texts).items()}


class StableHlo:
    """A folder of functions that `jax.export` wrote, run by JAX."""

    def __init__(self, path, num_threads=2):
        """Reads the weights. JAX takes as many threads as there are cores."""
        import jax

        self._path = Path(path)
        self._about = json.loads((self._path / "about.json").read_text())
        with np.load(self._path / "weights.npz") as weights:
            self._weights = jax.device_put(dict(weights))
        self._functions = {}

    def run(self, signature, inputs):
        """Returns the outputs of a signature; see `TfLite`.

        Raises:
            RuntimeError: If JAX is older than the one that wrote them, and cannot read
                them.
        """
        import jax
        import jax.export

        if signature not in self._functions:
            written = (self._path / f"{signature}.bin").read_bytes()
            try:
                function = jax.jit(jax.export.deserialize(bytearray(written)).call)
            except Exception as error:
                raise RuntimeError(
                    f"jax {jax.__version__} cannot read what jax {self._about['jax']} "
                    f"wrote; install that one: {error}"
                ) from error
            self._functions[signature] = function
        inputs = {name: inputs[name] for name in self._about["inputs"][signature]}
        outputs = self._functions[signature](self._weights, inputs)
        return {name: np.asarray(value) for name, value in outputs.items()}


# The name of a model's file or folder, and what opens it.
BACKENDS = {
    "model.tflite": TfLite,
    "saved_model": SavedModel,
    "onnx": Onnx,
    "stablehlo": StableHlo,
}


def open_model(folder, num_threads=2):
    """Opens the model of an artefact's folder, whatever its format."""
    for name, backend in BACKENDS.items():
        if (Path(folder) / name).exists():
            return backend(Path(folder) / name, num_threads)
    raise FileNotFoundError(f"{folder} has none of {', '.join(BACKENDS)}")
