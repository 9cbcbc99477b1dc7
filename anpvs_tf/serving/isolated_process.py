"""Runs an exported model where this package cannot be imported.

  python -I isolated.py MODEL_DIRECTORY IMAGES.npy OUTPUTS.npz BATCH_SIZE

IMAGES: uint8 [examples, H, W, C]. OUTPUTS: "<signature or file>/<output>" for all
examples in order. Empty and single batches are tried as well. `verification` starts it.
"""

import functools
import json
import pathlib
import subprocess
import sys
import tempfile

if not __package__:  # As a program: an import of the package fails, even where it is installed.
    sys.modules["anpvs_tf"] = None

import numpy as np


def saved_model_functions(path: pathlib.Path) -> dict:
    """Loads a SavedModel: {signature: uint8 images -> outputs}."""
    import tensorflow as tf

    signatures = tf.saved_model.load(str(path)).signatures

    def encode(images):
        return tf.constant([tf.io.encode_png(image).numpy() for image in images], tf.string)

    prepare = {
        "serving_default": lambda images: tf.constant(images, tf.float32) / 255.0,
        "serve_uint8": tf.constant,
        "serve_encoded": encode,
    }
    if set(signatures) != set(prepare):
        sys.exit(f"the SavedModel has the signatures {sorted(signatures)}")
    return {
        name: lambda images, name=name: {
            output: value.numpy()
            for output, value in signatures[name](images=prepare[name](images)).items()
        }
        for name in prepare
    }


def tflite_functions(path: pathlib.Path) -> dict:
    """Loads LiteRT models: {file name: uint8 images -> outputs}."""
    from ai_edge_litert.interpreter import Interpreter

    def run(interpreter, images):
        # The runner keeps no reference to the interpreter, nor its outputs to their memory.
        runner = interpreter.get_signature_runner()
        images = images.astype(np.float32) / 255.0
        details = runner.get_input_details()["images"]
        if details["dtype"] == np.int8:
            scale, zero = details["quantization"]
            images = np.clip(np.round(images / scale) + zero, -128, 127).astype(np.int8)
        outputs = {name: np.array(value) for name, value in runner(images=images).items()}
        for name, value in outputs.items():
            if value.dtype == np.int8:
                scale, zero = runner.get_output_details()[name]["quantization"]
                outputs[name] = (value.astype(np.float32) - zero) * np.float32(scale)
        return {"classes": outputs["logits"].argmax(axis=-1)} | outputs

    return {
        file.name: functools.partial(run, Interpreter(str(file)))
        for file in sorted(path.glob("*.tflite"))
    }


def keras_functions(path: pathlib.Path) -> dict:
    """Loads a Keras file in safe mode: {file name: uint8 images -> outputs}."""
    import keras

    network = keras.saving.load_model(path / "model.keras")

    def run(images):
        logits = network.predict_on_batch(images.astype(np.float32) / 255.0)
        outputs = {"logits": logits, "probabilities": keras.ops.softmax(logits)}
        outputs["classes"] = keras.ops.argmax(logits, axis=-1)
        return {name: np.asarray(value) for name, value in outputs.items()}

    return {"model.keras": run}


def onnx_functions(path: pathlib.Path) -> dict:
    """Loads an ONNX model: {file name: uint8 images -> outputs}."""
    import onnxruntime

    (file,) = path.glob("*.onnx")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images):
        values = session.run(names, {"images": images.astype(np.float32) / np.float32(255.0)})
        return dict(zip(names, values, strict=True))

    return {file.name: run}


def torch_functions(path: pathlib.Path) -> dict:
    """Loads a PyTorch module by the file beside its weights: {file name: uint8 images -> outputs}.

    It takes channels first.
    """
    import runpy

    import torch

    network = runpy.run_path(str(path / "model.py"))["load"]()

    def run(images):
        floats = torch.from_numpy(images.astype(np.float32)) / 255.0
        with torch.inference_mode():
            logits = network(floats.permute(0, 3, 1, 2))
            outputs = {"logits": logits, "probabilities": logits.softmax(-1)}
            outputs["classes"] = logits.argmax(-1)
        return {name: value.numpy() for name, value in outputs.items()}

    return {"model.pt": run}


def web_functions(path: pathlib.Path) -> dict:
    """Runs the networks of a page under Node.js: {name: uint8 images -> outputs}.

    The first is the exported network, by the name of the file, and the second its "rival".
    """
    page, program = path / "index.html", pathlib.Path(__file__).parent / "web" / "check.js"
    content = page.read_text(encoding="utf-8").split('<script id="content"')[1]
    content = json.loads(content.split("</script>")[0].partition(">")[2])

    def run(number, images):
        with tempfile.TemporaryDirectory() as directory:
            sent, received = f"{directory}/images", f"{directory}/outputs"
            (images.astype("<f4") / np.float32(255.0)).tofile(sent)
            command = ["node", program, page, str(number), sent, received]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if "Error" in line]
                sys.exit(f"node: {(lines or ['no message'])[-1][:300]}")
            found = np.fromfile(received, "<f4").reshape(2, len(images), -1)
        logits, probabilities = found
        return {
            "logits": logits,
            "probabilities": probabilities,
            "classes": logits.argmax(axis=-1),
        }

    names = [page.name, "rival"][: len(content["networks"])]
    return {name: functools.partial(run, number) for number, name in enumerate(names)}


# By the file that tells the format: how its models are run, and the small batches to try.
FORMATS = {
    "saved_model.pb": (saved_model_functions, (0, 1)),
    "model.tflite": (tflite_functions, (1,)),  # LiteRT has no empty tensors.
    "model.keras": (keras_functions, (1,)),  # TensorFlow has no convolution of an empty batch.
    "model.onnx": (onnx_functions, (0, 1)),
    "network.onnx": (onnx_functions, (0, 1)),
    "model.pt": (torch_functions, (0, 1)),
    "index.html": (web_functions, (1,)),
}


def main(model: str, images_path: str, outputs_path: str, batch_size: str) -> None:
    path, images = pathlib.Path(model), np.load(images_path)
    formats = [held for file, held in FORMATS.items() if (path / file).exists()]
    if not formats:
        sys.exit(f"none of {', '.join(FORMATS)} is in {path}")
    load, small_batches = formats[0]
    size = int(batch_size)
    found = {}
    for name, function in load(path).items():
        batches = [function(images[i : i + size]) for i in range(0, len(images), size)]
        for few in small_batches:
            for output, value in function(images[:few]).items():
                if value.shape != (few, *batches[0][output].shape[1:]):
                    sys.exit(f"{name}: {output} has shape {value.shape} at batch size {few}")
        for output in batches[0]:
            values = np.concatenate([batch[output] for batch in batches])
            # Strings come as Python objects, which would need pickle.
            found[f"{name}/{output}"] = values.astype("S") if values.dtype == object else values
    np.savez(outputs_path, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
