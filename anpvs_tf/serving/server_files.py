"""The files of an export base that tell a server about its versions."""

import json
import pathlib
import re

import keras

from anpvs_tf.common.files import write_atomically

MODELS_CONFIG = """\
model_config_list {{
  config {{
    name: {name}
    base_path: {path}
    model_platform: "tensorflow"
  }}
}}
"""

# A request waits for others 2 ms at most.
BATCHING_CONFIG = """\
max_batch_size { value: 64 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 100 }
"""

# Requests that wait while the network is busy become one batch.
TRITON_CONFIG = """\
name: {name}
backend: "{backend}"
default_model_filename: "{file}"
max_batch_size: 64
dynamic_batching {{ }}
instance_group {{ kind: KIND_CPU }}
input {{ name: "images" data_type: TYPE_FP32 dims: {image_shape} }}
output {{ name: "logits" data_type: TYPE_FP32 dims: [{classes}] }}
output {{ name: "probabilities" data_type: TYPE_FP32 dims: [{classes}] }}
output {{ name: "classes" data_type: TYPE_INT64 dims: [1] reshape {{ shape: [] }} }}
"""
TRITON_BACKENDS = {
    "config.pbtxt": ("python", "model.py"),
    "configs/onnxruntime.pbtxt": ("onnxruntime", "network.onnx"),
}

INFERENCE_SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
spec:
  predictor:
    model:
      modelFormat: {{name: {format}, version: "2"}}
      protocolVersion: {protocol}
      # The tag of the server's image: KServe's own default is older than this export needs.
      runtimeVersion: {image}
      # On a persistent volume claim named `models`; s3://, gs:// and https:// work as well.
      storageUri: {uri}
"""
# Tags of images: of tensorflow/serving, and of nvcr.io/nvidia/tritonserver.
TENSORFLOW_SERVING = "2.20.0"
# From 24.05 on, the server knows --model-config-name.
TRITON = "25.02-py3"


def of_saved_model(network: keras.Model, name: str) -> dict[str, str]:
    """Makes {file: text} for TensorFlow Serving and KServe; arguments as of `of_triton`."""
    held = {"name": _quoted(name), "path": _quoted(f"/models/{name}")}
    service = {"format": "tensorflow", "protocol": "v1", "image": TENSORFLOW_SERVING}
    service["uri"] = _quoted(f"pvc://models/{name}")
    return {
        "models.config": MODELS_CONFIG.format(**held),
        "batching.config": BATCHING_CONFIG,
        "inference_service.yaml": INFERENCE_SERVICE.format(name=service_name(name), **service),
    }


def of_triton(network: keras.Model, name: str) -> dict[str, str]:
    """Makes {file: text} for Triton Inference Server and KServe.

    Args:
        network: the exported one: images [batch, H, W, C] -> logits [batch, classes].
        name: of the model: that of the export base.
    """
    held = {
        "name": _quoted(name),
        "image_shape": list(network.inputs[0].shape[1:]),
        "classes": network.outputs[0].shape[-1],
    }
    found = {
        path: TRITON_CONFIG.format(backend=backend, file=file, **held)
        for path, (backend, file) in TRITON_BACKENDS.items()
    }
    # The server reads all models of a claim.
    service = {"format": "triton", "protocol": "v2", "image": TRITON, "uri": "pvc://models"}
    text = INFERENCE_SERVICE.format(name=service_name(name), **service)
    # KServe runs NVIDIA's container, which has ONNX Runtime itself.
    text += "      args: [--model-config-name=onnxruntime]\n"
    return found | {"inference_service.yaml": text}


def service_name(name: str) -> str:
    """Makes a name that Kubernetes takes: small letters, digits and dashes, at most 50."""
    made = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    if not made[:1].isalpha():
        made = f"model-{made}"
    return made[:50].strip("-")


def write(base: pathlib.Path, files: dict[str, str]) -> None:
    """Writes the files into an export base, except those that exist: users edit them.

    Raises:
        TrainingError: a file could not be written; those that this call wrote are deleted.
    """
    made: list[pathlib.Path] = []
    try:
        for name, text in files.items():
            path = base / name
            if not path.exists():
                made.append(path)
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, text)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
            if path.parent != base and not any(path.parent.iterdir()):
                path.parent.rmdir()
        raise


def _quoted(text: str) -> str:
    """Quotes a string for YAML and for protobuf's text format."""
    return json.dumps(text, ensure_ascii=False)
