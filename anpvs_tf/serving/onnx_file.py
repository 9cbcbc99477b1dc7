"""The ONNX file of a frozen network."""

import logging
import pathlib

import keras
import tensorflow as tf

# Of 2022, with all operations that frozen networks need.
OPSET = 17


def write(frozen: keras.Model, file: pathlib.Path) -> None:
    """Writes an ONNX file: images -> the three outputs of the SavedModel, without its checks.

    The input is `images`, float32 [batch, H, W, C] in [0, 1]; any batch size, 0 included.
    """
    import onnx
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)

    def respond(images):
        logits = frozen(images, training=False)
        classes = tf.argmax(logits, axis=-1)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits), "classes": classes}

    spec = tf.TensorSpec([None, *frozen.inputs[0].shape[1:]], tf.float32, "images")
    function = tf.function(respond, autograph=False)
    model, _ = tf2onnx.convert.from_function(function, input_signature=[spec], opset=OPSET)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)
