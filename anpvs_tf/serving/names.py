"""The names of the formats of an export, and of LiteRT's quantisations; imports no TensorFlow."""

from collections.abc import Sequence

from anpvs_tf.common.errors import UsageError

FORMATS = ("saved_model", "tflite", "keras", "onnx", "triton", "torch", "web")

# Of LiteRT: float16 weights; 8-bit weights, and activations whose ranges are found in each call;
# 8-bit integers throughout, input and output included.
QUANTIZATIONS = ("float16", "dynamic", "int8")
CALIBRATION_EXAMPLES = 500


def quantizations(format: str, asked: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the quantisations to write besides float32; without a wish, the usual ones.

    Raises:
        UsageError: an unknown one, or one of a format that has none.
    """
    if asked is None:
        return ("dynamic",) if format == "tflite" else ()
    if format != "tflite":
        raise UsageError("--quantize belongs to --format=tflite")
    if unknown := [name for name in asked if name not in QUANTIZATIONS]:
        raise UsageError(
            f"unknown quantisation {unknown[0]!r}; choose of {', '.join(QUANTIZATIONS)}"
        )
    return tuple(dict.fromkeys(asked))
