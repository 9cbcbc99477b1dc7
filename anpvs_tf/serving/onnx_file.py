"""The ONNX file of a frozen network."""

import logging
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from anpvs_tf.serving import inexpressible

if TYPE_CHECKING:
    import onnx

# Of 2022, with all operations that frozen networks need.
OPSET = 17


def write(frozen: keras.Model, file: pathlib.Path) -> None:
    """Writes an ONNX file: images -> the three outputs of the SavedModel, without its checks.

    The input is `images`, float32 [batch, H, W, C] in [0, 1]; any batch size, 0 included.

    Raises:
        UsageError: ONNX cannot express the network; the message names the operations and layers.
            No file was written.
    """
    import onnx
    import tf2onnx

    # Of operations that ONNX lacks, it logs a line each; the error below names them.
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)

    def respond(images):
        logits = frozen(images, training=False)
        classes = tf.argmax(logits, axis=-1)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits), "classes": classes}

    spec = tf.TensorSpec([None, *frozen.inputs[0].shape[1:]], tf.float32, "images")
    function = tf.function(respond, autograph=False)
    function.get_concrete_function(spec)  # An error of the network itself is none of ONNX.
    try:
        model, _ = tf2onnx.convert.from_function(function, input_signature=[spec], opset=OPSET)
    except Exception as error:  # Its function for an operation may raise any.
        raise inexpressible.of_converter("ONNX", error) from error
    if absent := list(_absent(model.graph)):
        raise inexpressible.of_operations("ONNX", frozen, absent)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise inexpressible.of_converter("ONNX", error) from error
    onnx.save(model, file)


def _absent(graph: "onnx.GraphProto") -> Iterator[tuple[str, str]]:
    """Yields (type, name) of each node that is still TensorFlow's, bodies of loops included."""
    import onnx

    for node in graph.node:
        try:
            onnx.defs.get_schema(node.op_type, OPSET, node.domain)
        except onnx.defs.SchemaError:
            yield node.op_type, node.name
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _absent(body)
