"""The LiteRT files of a frozen network."""

import pathlib

import keras
import tensorflow as tf


def write(frozen: keras.Model, path: pathlib.Path) -> None:
    """Writes model.tflite (float32) and model_int8.tflite (int8 weights).

    Both take float32 images [batch, H, W, C] in [0, 1] and return the three
    outputs of the SavedModel by name, without its checks.
    """

    def respond(images):
        logits = frozen(images, training=False)
        classes = tf.argmax(logits, axis=-1)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits), "classes": classes}

    spec = tf.TensorSpec([None, *frozen.inputs[0].shape[1:]], tf.float32, "images")
    function = tf.function(respond, autograph=False).get_concrete_function(spec)
    held = tf.Module()  # Of a Keras model, the converter would not find the variables.
    held.weights = [weight.value for weight in frozen.weights]
    for name, optimizations in (("model", []), ("model_int8", [tf.lite.Optimize.DEFAULT])):
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], held)
        converter.optimizations = optimizations
        (path / f"{name}.tflite").write_bytes(converter.convert())
