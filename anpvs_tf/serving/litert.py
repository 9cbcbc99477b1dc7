"""The LiteRT files of a frozen network."""

import pathlib
import warnings
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.common import quiet
from anpvs_tf.data import pipelines
from anpvs_tf.serving import inexpressible

FLOAT = "model.tflite"


def file_name(quantization: str) -> str:
    """Makes the name of the file of one of `names.QUANTIZATIONS`."""
    return f"model_{quantization}.tflite"


def write(
    frozen: keras.Model,
    path: pathlib.Path,
    quantize: Sequence[str] = (),
    calibration: np.ndarray | None = None,
) -> None:
    """Writes model.tflite (float32), and a file for each quantisation.

    All but int8 take float32 images [batch, H, W, C] in [0, 1] and return the three outputs of the
    SavedModel by name, without its checks. int8 takes `images` and returns `logits` and
    `probabilities` as int8, whose scales and zero points the file holds; no operator in it
    computes floats.

    Args:
        quantize: of `names.QUANTIZATIONS`.
        calibration: for int8: uint8 images [examples, H, W, C], which decide on the ranges of the
            activations.

    Raises:
        UsageError: LiteRT cannot express the network; the message names the operations and layers.
    """
    spec = tf.TensorSpec([None, *frozen.inputs[0].shape[1:]], tf.float32, "images")
    held = tf.Module()  # Of a Keras model, the converter would not find the variables.
    held.weights = [weight.value for weight in frozen.weights]

    def converter(with_classes=True):
        def respond(images):
            logits = frozen(images, training=False)
            outputs = {"logits": logits, "probabilities": tf.nn.softmax(logits)}
            if with_classes:
                outputs["classes"] = tf.argmax(logits, axis=-1)
            return outputs

        function = tf.function(respond, autograph=False).get_concrete_function(spec)
        return tf.lite.TFLiteConverter.from_concrete_functions([function], held)

    (path / FLOAT).write_bytes(_converted(converter(), frozen))
    for quantization in quantize:
        # LiteRT computes the argmax of floats alone.
        made = converter(with_classes=quantization != "int8")
        made.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantization == "float16":
            made.target_spec.supported_types = [tf.float16]
        if quantization == "int8":
            made.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            made.inference_input_type = made.inference_output_type = tf.int8
            made.representative_dataset = lambda: (
                {"images": pipelines.to_float(calibration[i : i + 1])}
                for i in range(len(calibration))
            )
        (path / file_name(quantization)).write_bytes(_converted(made, frozen))


def _converted(converter: tf.lite.TFLiteConverter, frozen: keras.Model) -> bytes:
    """Converts the network; raises as `write`."""
    from tensorflow.lite.python.convert import ConverterError

    with quiet.standard_error_held_back(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The converter uses an interpreter of TensorFlow's.
        try:
            return converter.convert()
        # RuntimeError: of that interpreter, which the ranges of int8 are found with.
        except (ConverterError, RuntimeError) as error:
            failure = error
    # The place is a chain of calls, of which the first is the node itself: name@function.
    operations = [
        (one.operator.name.removeprefix("tf."), one.location.call[0].name.split("@")[0])
        for one in getattr(failure, "errors", ())
        if one.location.call
    ]
    if operations:
        raise inexpressible.of_operations("LiteRT", frozen, operations) from failure
    raise inexpressible.of_converter("LiteRT", failure) from failure
