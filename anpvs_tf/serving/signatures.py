"""The SavedModel of a frozen network: its signatures and its warm-up requests."""

import contextlib
import pathlib

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.data import pictures, pipelines

SIGNATURES = ("serving_default", "serve_uint8", "serve_encoded")


class _Server(tf.Module):
    """The signatures; see docs/serving.md."""

    def __init__(self, frozen: keras.Model, names: list[str] | None):
        super().__init__()
        self.held = [weight.value for weight in frozen.weights]
        # Not the model itself: Keras would add functions of its own to the export.
        self._logits = lambda images: frozen(images, training=False)
        self._names = names
        self.image_shape = list(frozen.inputs[0].shape[1:])

    def from_float(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        images = self._checked(images)
        low, high = tf.reduce_min(images), tf.reduce_max(images)
        in_range = tf.reduce_all((images >= 0.0) & (images <= 1.0))  # False for NaN.
        message = "images must lie in [0, 1]; their least and greatest value:"
        with _asserted(in_range, message, low, high):
            return self._respond(tf.identity(images))

    def from_uint8(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._respond(pipelines.to_float(self._checked(images)))

    def from_encoded(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        images = _shape_unknown(images)
        shape = tf.shape(images)
        ends = tf.concat([shape, [-1, -1]], axis=0)
        vector = (ends[0] >= 0) & (ends[1] < 0)
        with _asserted(vector, "images must have shape [batch]; got", shape):
            images = tf.reshape(images, [-1])
        png = tf.strings.substr(images, 0, 8) == b"\x89PNG\r\n\x1a\n"
        known = png | (tf.strings.substr(images, 0, 3) == b"\xff\xd8\xff")
        bad = tf.where(~known)[:, 0]
        message = "images must be PNG or JPEG files; neither are numbers"
        with _asserted(tf.reduce_all(known), message, bad):
            images = tf.identity(images)
        made = (tf.TensorSpec(self.image_shape, tf.uint8), tf.TensorSpec([2], tf.int32))
        pixels, sizes = tf.map_fn(self._decode, images, fn_output_signature=made)
        height, width, _ = self.image_shape
        right = tf.reduce_all(sizes == [height, width], axis=1)
        message = f"images must have {height} x {width} pixels; [height width] of others:"
        with _asserted(tf.reduce_all(right), message, tf.boolean_mask(sizes, ~right)):
            return self._respond(pipelines.to_float(tf.identity(pixels)))

    def _decode(self, encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Decodes an image: returns it cropped or padded to fit, and its true height and width."""
        height, width, channels = self.image_shape
        pixels = pictures.decode(encoded, channels)
        fitted = tf.image.resize_with_crop_or_pad(pixels, height, width)
        return fitted, tf.shape(pixels)[:2]

    def _checked(self, images: tf.Tensor) -> tf.Tensor:
        images = _shape_unknown(images)
        shape = tf.shape(images)
        # Not by tf.rank, which is taken from the declared shape all the same.
        ends = tf.concat([shape, [-1] * 5], axis=0)[1:5]
        right = tf.reduce_all(ends == [*self.image_shape, -1])
        height, width, channels = self.image_shape
        message = f"images must have shape [batch, {height}, {width}, {channels}]; got"
        with _asserted(right, message, shape):
            return tf.ensure_shape(tf.identity(images), [None, *self.image_shape])

    def _respond(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        # On CPUs (oneDNN, TensorFlow 2.21) a convolution of an empty batch fails: run one image.
        # Not with tf.pad, which would be fused into the convolution.
        batch = tf.shape(images)[0]
        empty = tf.cast(tf.equal(batch, 0), tf.int32)
        extra = tf.zeros([empty, *self.image_shape])
        logits = self._logits(tf.concat([images, extra], axis=0))[:batch]
        classes = tf.argmax(logits, axis=-1)
        outputs = {"logits": logits, "probabilities": tf.nn.softmax(logits), "classes": classes}
        if self._names is not None:
            outputs["labels"] = tf.gather(tf.constant(self._names), classes)
        return outputs


def _asserted(
    condition: tf.Tensor, message: str, *values: tf.Tensor
) -> contextlib.AbstractContextManager:
    """Makes a context whose operations run only if `condition` holds."""
    check = tf.debugging.Assert(condition, [message, *values], summarize=5)
    return tf.control_dependencies([check])


def _shape_unknown(images: tf.Tensor) -> tf.Tensor:
    # A server feeds whatever shape it is sent. With the declared shape in sight, a check of
    # the shape would be taken to hold and be removed from the graph.
    return tf.compat.v1.placeholder_with_default(images, shape=None)


def write_saved_model(frozen: keras.Model, names: list[str] | None, path: pathlib.Path) -> None:
    """Writes a SavedModel with the signatures `SIGNATURES` into the directory `path`.

    Args:
        frozen: a network from `compact.freeze`.
        names: of the classes, or None for no output `labels`.
    """
    server = _Server(frozen, names)
    batch = [None, *server.image_shape]
    inputs = (
        (server.from_float, tf.TensorSpec(batch, tf.float32, "images")),
        (server.from_uint8, tf.TensorSpec(batch, tf.uint8, "images")),
        (server.from_encoded, tf.TensorSpec([None], tf.string, "images")),
    )
    signatures = {
        name: tf.function(call, autograph=False).get_concrete_function(spec)
        for name, (call, spec) in zip(SIGNATURES, inputs, strict=True)
    }
    tf.saved_model.save(server, str(path), signatures)


def requests(images: np.ndarray) -> dict[str, tf.Tensor]:
    """Makes the input of each signature for uint8 images [batch, H, W, C]."""
    encoded = [tf.io.encode_png(image).numpy() for image in images]
    values = (pipelines.to_float(images), tf.constant(images), tf.constant(encoded, tf.string))
    return dict(zip(SIGNATURES, values, strict=True))


def write_warmup(path: pathlib.Path, name: str, images: np.ndarray) -> None:
    """Writes one request a signature, which a server runs before it serves the version.

    Args:
        path: the version's directory.
        name: of the model in the server.
        images: uint8 [batch, H, W, C].
    """
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    extra = path / "assets.extra"
    extra.mkdir()
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        for signature, value in requests(images).items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name = name
            request.model_spec.signature_name = signature
            request.inputs["images"].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictLog(request=request)
            record = prediction_log_pb2.PredictionLog(predict_log=log)
            writer.write(record.SerializeToString())
