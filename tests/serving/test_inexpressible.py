"""Networks that ONNX or LiteRT cannot express: one line says why, and nothing is written."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.serving import formats, inexpressible

layers = keras.layers
IMAGES = np.random.default_rng(0).integers(0, 255, [5, 8, 8, 2], np.uint8)


class Computed(layers.Layer):
    """A layer of one function of TensorFlow that keeps the shape."""

    def __init__(self, function, name):
        super().__init__(name=name)
        self.function = function

    def call(self, x):
        return self.function(x)

    def compute_output_shape(self, shape):
        return shape


def fft(x):
    return tf.math.real(tf.signal.fft(tf.cast(x, tf.complex64)))


def cholesky(x):
    return x + tf.reduce_sum(tf.linalg.cholesky(tf.einsum("bijc,bkjc->bik", x, x)))


def looped(x):
    return tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, tf.math.erfc(x)), [0, x])[1]


def spectrum(x):
    return x + tf.math.real(tf.signal.rfft(x, [3]))


# {name: function of images [batch, 8, 8, 2]}.
NETWORKS = {
    "gelu": layers.Activation("gelu", name="first"),
    "celu": layers.Activation("celu", name="bend"),
    "two": lambda x: layers.Activation("gelu", name="bow")(layers.Activation("celu", name="a")(x)),
    "groups": layers.Conv2D(4, 3, groups=2, name="grouped"),
    "erfinv": lambda x: keras.ops.erfinv(x * 0.5),
    "fft": Computed(fft, "waves"),
    "loop": Computed(looped, "again"),
    "erfc": Computed(tf.math.erfc, "tail"),
    "cholesky": Computed(cholesky, "root"),
    "gru": lambda x: layers.GRU(3, name="steps")(layers.Reshape([16, 8])(x)),
    "plain": layers.ReLU(),
    "spectrum": Computed(spectrum, "rfft3"),
}
REFUSED = [
    ("onnx", "gelu", "ONNX has no operation Erfc (layer first, Activation)"),
    ("triton", "celu", "ONNX has no operation Expm1 (layer bend, Activation)"),
    (
        *("onnx", "two"),
        "ONNX has no operation Expm1 (layer a, Activation), Erfc (layer bow, Activation)",
    ),
    ("onnx", "groups", "ONNX has no operation StatefulPartitionedCall (layer grouped, Conv2D)"),
    ("onnx", "erfinv", "ONNX has no operation Erfinv"),
    (
        *("onnx", "fft"),
        "ONNX has no operation FFT (layer waves, Computed), Real (layer waves, Computed)",
    ),
    ("onnx", "loop", "ONNX has no operation Erfc (layer again, Computed)"),
    ("tflite", "erfc", "LiteRT has no operation Erfc (layer tail, Computed)"),
    ("tflite", "erfinv", "LiteRT has no operation Erfinv"),
    ("tflite", "loop", "LiteRT has no operation Erfc (layer again, Computed)"),
    ("tflite", "cholesky", "LiteRT has no operation Cholesky (layer root, Computed)"),
    ("tflite", "gru", "LiteRT has no operation TensorListReserve (layer steps, GRU)"),
]


def made(name):
    images = keras.Input([8, 8, 2])
    features = layers.Flatten()(NETWORKS[name](images))
    return keras.Model(images, layers.Dense(3)(features))


def content(name, **changes):
    return formats.Content(made(name), None, "m", None, **changes)


@pytest.fixture
def writer():
    """The function that writes a format; skips the test where its packages are not installed."""

    def found(format):
        for package in formats.FORMATS[format].packages:
            pytest.importorskip(package)
        return formats.FORMATS[format].write

    return found


@pytest.mark.parametrize(("format", "name", "message"), REFUSED)
def test_operations_that_a_format_lacks(format, name, message, writer, tmp_path, capfd, caplog):
    with pytest.raises(UsageError) as caught:
        writer(format)(content(name), tmp_path)
    assert str(caught.value) == f"{message}; use another --format"
    assert not list(tmp_path.iterdir())
    # The converters' own messages.
    assert "Erf" not in "".join(capfd.readouterr()) and "Erf" not in caplog.text


def test_integers_that_cannot_be_calibrated(writer, tmp_path):
    """The interpreter refuses a length that is no power of two, when it is run."""
    asked = content("spectrum", quantize=("int8",), calibration=IMAGES)
    with pytest.raises(
        UsageError, match=r"^LiteRT cannot express this network .*Power.*; use another --format$"
    ):
        writer("tflite")(asked, tmp_path)


def test_a_network_that_onnx_refuses_otherwise(writer, tmp_path, monkeypatch):
    import onnx

    def refuse(model, full_check):
        raise onnx.shape_inference.InferenceError("Inference error(s):\n(op_type:MatMul)")

    write = writer("onnx")
    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    line = r"^ONNX cannot express this network \(Inference error\(s\): \(op_type:MatMul\)\); use"
    with pytest.raises(UsageError, match=line):
        write(content("plain"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_long_list_is_cut():
    nodes = [(f"Op{i}", "m/dense_1/x") for i in range(5)] * 2
    said = str(inexpressible.of_operations("ONNX", made("gelu"), nodes))
    assert said == "ONNX has no operation Op0, Op1, Op2 and 2 more; use another --format"


def test_a_name_that_two_layers_may_have():
    images = keras.Input([3])
    inner = layers.Dense(3, name="a")(images)
    network = keras.Model(images, layers.Dense(3, name="a_1")(inner))
    said = str(inexpressible.of_operations("ONNX", network, [("Erfc", "m_1/a_1/Erfc")]))
    assert "Erfc (layer a, Dense or a_1, Dense)" in said
    said = str(inexpressible.of_operations("ONNX", network, [("Erfc", "m_1/a_1_1/Erfc")]))
    assert "Erfc (layer a_1, Dense)" in said
