"""A full-integer LiteRT network: the answers of its interpreter, and gradients to attack it with.

Rounding has no gradient. `IntegerNetwork.simulate` computes the integers of the file in float32,
operator by operator, and its gradient goes straight through each rounding (Bengio et al. 2013);
`IntegerNetwork.logits` joins this gradient to the answers of the interpreter. Alone it is masked:
pixels seen through weights that were rounded to zero have none. So that of the float network is
added to it (docs/evaluation.md has the figures).

Values of a tensor stand for (value - zero point) * scale. Sums of products stay exact in float32 up
to 2^24, and are scaled and rounded as XNNPACK does it, the interpreter's usual kernels.
"""

import functools
import operator
import pathlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from anpvs_tf.common import quiet
from anpvs_tf.common.errors import UsageError, one_line

LOWEST, HIGHEST = -128, 127
HOW = "make one by bin/export.py --format=tflite --quantize=int8"


class Step(NamedTuple):
    """An operator: `run` takes the tensors numbered `inputs`, and makes the one `output`.

    of_integers: it takes its inputs rounded; if not, it commutes with rounding.
    """

    inputs: list[int]
    output: int
    run: Callable[..., tf.Tensor]
    of_integers: bool


class IntegerNetwork:
    """The network of a LiteRT file of which every value is an 8-bit integer.

    Args:
        path: of a file with an input `images` and an output `logits`, both int8.
        origin: images -> logits of the float network that the file was made from: its gradient is
            added to that of `simulate`; None leaves that alone.

    Attributes:
        image_shape: (height, width, channels) of the images that it takes.
        classes: how many logits it returns.
        quantum: the logits' scale: they are whole multiples of it.

    Raises:
        UsageError: the file or the package that reads it is missing, or it is another network.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        origin: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ):
        self._file, self._origin = _File(path), origin
        self._runner, self._lock = self._file.runner, threading.Lock()
        given, made = (self._file.ends[name] for name in ("images", "logits"))
        self.image_shape = tuple(self._file.shape(given)[1:])
        self.classes = self._file.shape(made)[-1]
        self._scale, self._zero = self._file.quantization(given)
        self.quantum, self._zero_logit = self._file.quantization(made)
        self._given, self._made = given, made
        self._steps = self._file.steps(made)

    def logits(self, images: tf.Tensor) -> tf.Tensor:
        """Classifies images by the interpreter, with a gradient that follows the integers.

        Args:
            images: float32 [batch, H, W, C] in [0, 1]; they are rounded to the input's integers.

        Returns:
            float32 [batch, classes].
        """

        @tf.custom_gradient
        def answer(images):
            found = tf.numpy_function(self._interpret, [images], tf.float32, stateful=False)

            def gradient(upstream):
                with tf.GradientTape() as tape:
                    tape.watch(images)
                    followed = self.simulate(images)
                    if self._origin is not None:
                        followed += self._origin(images)
                return tape.gradient(followed, images, upstream)

            return tf.ensure_shape(found, [images.shape[0], self.classes]), gradient

        return answer(tf.convert_to_tensor(images))

    def _interpret(self, images: np.ndarray) -> np.ndarray:
        # As `simulate` rounds them.
        integers = np.round(images / np.float32(self._scale)) + np.float32(self._zero)
        integers = np.clip(integers, LOWEST, HIGHEST).astype(np.int8)
        with self._lock:  # TensorFlow may call from several threads.
            found = self._runner(images=integers)["logits"].astype(np.float32)
        return (found - np.float32(self._zero_logit)) * np.float32(self.quantum)

    def simulate(self, images: tf.Tensor) -> tf.Tensor:
        """Computes the logits in float32, with a gradient; arguments as of `logits`."""
        tensors = {self._given: clipped(images / self._scale + self._zero)}
        for step in self._steps:
            # A value is rounded when it is used. Choosing the greatest comes before: the gradient
            # then follows the one that was greatest before rounding made several equal.
            prepare = rounded if step.of_integers else tf.identity
            tensors[step.output] = step.run(*(prepare(tensors[i]) for i in step.inputs))
        return (rounded(tensors[self._made]) - self._zero_logit) * self.quantum


def clipped(values: tf.Tensor, lowest: int = LOWEST, highest: int = HIGHEST) -> tf.Tensor:
    """Clips to the integers that a tensor can hold."""
    return tf.clip_by_value(values, float(lowest), float(highest))


def rounded(values: tf.Tensor) -> tf.Tensor:
    """Rounds to integers, to even at a half; the gradient goes straight through."""
    return values + tf.stop_gradient(tf.round(values) - values)


class _File:
    """The content of a LiteRT file."""

    def __init__(self, path: str | pathlib.Path):
        try:
            from ai_edge_litert import interpreter, schema_py_generated
        except ModuleNotFoundError as error:
            raise UsageError(
                f"a LiteRT file needs the package {error.name}: pip install 'anpvs_tf[serving]'"
            ) from error
        self.path, schema = path, schema_py_generated
        try:
            content = pathlib.Path(path).read_bytes()
            with quiet.standard_error_held_back():  # It says which kernels it takes.
                network = interpreter.Interpreter(model_content=content)
                network.allocate_tensors()
                self.runner = network.get_signature_runner()
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(f"LiteRT file {path} cannot be read: {one_line(error)}") from error
        self.model = schema.ModelT.InitFromPackedBuf(content)
        self.graph = self.model.subgraphs[0]
        self.names = {number: name for name, number in vars(schema.BuiltinOperator).items()}
        self.types = {number: name for name, number in vars(schema.TensorType).items()}
        self.activations = vars(schema.ActivationFunctionType)
        self.same = schema.Padding.SAME
        signature = self.model.signatureDefs[0]
        ends = [*signature.inputs, *signature.outputs]
        self.ends = {end.name.decode(): end.tensorIndex for end in ends}
        for name in ("images", "logits"):
            if name not in self.ends or self.type(self.ends[name]) != "INT8":
                raise UsageError(f"LiteRT file {path} has no {name} of 8-bit integers; {HOW}")

    def type(self, tensor: int) -> str:
        return self.types[self.graph.tensors[tensor].type]

    def shape(self, tensor: int) -> list[int]:
        return [int(size) for size in self.graph.tensors[tensor].shape]

    def quantization(self, tensor: int) -> tuple[float, int]:
        """Returns the scale and the zero point of a tensor that has one of each."""
        held = self.graph.tensors[tensor].quantization
        return float(held.scale[0]), int(held.zeroPoint[0])

    def scales(self, tensor: int) -> np.ndarray:
        return np.asarray(self.graph.tensors[tensor].quantization.scale, np.float32)

    def constant(self, tensor: int) -> np.ndarray | None:
        """Returns the integers that the file holds for a tensor; None if it is computed."""
        held = self.graph.tensors[tensor]
        data = self.model.buffers[held.buffer].data
        if data is None:
            return None
        kind = np.dtype(self.type(tensor).lower())
        return np.frombuffer(bytes(data), kind).reshape(self.shape(tensor))

    def limits(self, activation: int, tensor: int) -> tuple[int, int]:
        """Returns the least and the greatest integer that an activation leaves."""
        scale, zero = self.quantization(tensor)
        if activation == self.activations["NONE"]:
            return LOWEST, HIGHEST
        if activation == self.activations["RELU"]:
            return max(LOWEST, zero), HIGHEST
        if activation == self.activations["RELU6"]:
            return max(LOWEST, zero), min(HIGHEST, zero + round(6 / scale))
        (name,) = (name for name, number in self.activations.items() if number == activation)
        raise UsageError(f"LiteRT file {self.path} has the activation {name}: no gradient for it")

    def steps(self, wanted: int) -> list[Step]:
        """Lists the operators that compute a tensor, in order."""
        found, needed = [], {wanted}
        for node in reversed(self.graph.operators):
            (output, *_) = node.outputs
            if output not in needed:
                continue
            code = self.model.operatorCodes[node.opcodeIndex]
            name = self.names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            if name not in OPERATORS:
                raise UsageError(
                    f"LiteRT file {self.path} has the operator {name}; gradients are known of "
                    f"{', '.join(OPERATORS)}"
                )
            if self.type(output) != "INT8":
                raise UsageError(
                    f"LiteRT file {self.path} computes {self.type(output)} in an operator {name}; "
                    f"a network of 8-bit integers was expected: {HOW}"
                )
            # The others are constants, integers that say how to reshape, and -1: no bias.
            inputs = [
                i
                for i in node.inputs
                if i >= 0 and self.type(i) == "INT8" and self.constant(i) is None
            ]
            needed.update(inputs)
            run = OPERATORS[name](self, node, node.builtinOptions)
            found.append(Step(inputs, output, run, name not in CHOOSING))
        return found[::-1]


# ---- Operators: (file, node, its options) -> function that computes what is to be rounded ----


def _weighted(file: _File, node: Any, options: Any, product: Callable) -> Callable:
    """Makes a sum of products with int8 weights, each output channel with a scale of its own."""
    given, weights, *rest = node.inputs
    (made,) = node.outputs
    (scale, zero), (scale_made, zero_made) = map(file.quantization, (given, made))
    kernel = file.constant(weights).astype(np.float32)
    bias = file.constant(rest[0]).astype(np.float32) if rest and rest[0] >= 0 else np.float32(0)
    factor = np.float32(scale) * file.scales(weights) / np.float32(scale_made)
    limits = file.limits(options.fusedActivationFunction, made)

    def run(x):
        return clipped((product(x - zero, kernel) + bias) * factor + zero_made, *limits)

    return run


def _window(file: _File, options: Any) -> dict[str, Any]:
    return {
        "strides": (options.strideH, options.strideW),
        "padding": "SAME" if options.padding == file.same else "VALID",
    }


def _convolution(file: _File, node: Any, options: Any) -> Callable:
    window = _window(file, options)
    window["dilations"] = (options.dilationHFactor, options.dilationWFactor)

    def product(x, kernel):
        return tf.nn.conv2d(x, np.transpose(kernel, (1, 2, 3, 0)), **window)

    return _weighted(file, node, options, product)


def _dense(file: _File, node: Any, options: Any) -> Callable:
    return _weighted(file, node, options, lambda x, kernel: x @ kernel.T)


def _pooling(pool: Callable, file: _File, node: Any, options: Any) -> Callable:
    size, window = (options.filterHeight, options.filterWidth), _window(file, options)
    limits = file.limits(options.fusedActivationFunction, node.outputs[0])
    return lambda x: clipped(pool(x, size, **window), *limits)


def _average(x: tf.Tensor, size: tuple[int, int], **window: Any) -> tf.Tensor:
    # Integers are divided: halves are frequent, and are rounded away from zero.
    found = tf.nn.avg_pool2d(x, size, **window)
    away = tf.sign(found) * tf.floor(tf.abs(found) + 0.5)
    return found + tf.stop_gradient(away - found)


def _elementwise(combine: Callable, file: _File, node: Any, options: Any) -> Callable:
    """Makes a sum, difference or product of two tensors, one of which may be a constant."""
    (made,) = node.outputs
    scale, zero = file.quantization(made)
    limits = file.limits(options.fusedActivationFunction, made)
    sides = [(file.constant(i), *file.quantization(i)) for i in node.inputs]

    def run(*computed):
        left, values = list(computed), []
        for constant, scale_of, zero_of in sides:
            side = left.pop(0) if constant is None else constant.astype(np.float32)
            values.append((side - zero_of) * scale_of)
        return clipped(combine(*values) / scale + zero, *limits)

    return run


def _mean(file: _File, node: Any, options: Any) -> Callable:
    axes = file.constant(node.inputs[1]).ravel().tolist()
    scaled = _scaled(file, node)
    return lambda x: clipped(scaled(tf.reduce_mean(x, axes, keepdims=bool(options.keepDims))))


def _relu(file: _File, node: Any, options: Any) -> Callable:
    (made,), scaled = node.outputs, _scaled(file, node)
    limits = file.limits(file.activations["RELU"], made)
    return lambda x: clipped(scaled(x), *limits)


def _scaled(file: _File, node: Any) -> Callable:
    """Returns a function from the input's integers to the output's, not rounded."""
    (scale, zero), (scale_made, zero_made) = map(
        file.quantization, (node.inputs[0], node.outputs[0])
    )
    return lambda x: (x - zero) * (scale / scale_made) + zero_made


def _gather(file: _File, node: Any, options: Any) -> Callable:
    indices = file.constant(node.inputs[1])
    return lambda x: tf.gather(x, indices, axis=options.axis)


def _reshape(file: _File, node: Any, options: Any) -> Callable:
    shape = file.shape(node.outputs[0])[1:]
    return lambda x: tf.reshape(x, [-1, *shape])


CHOOSING = ("MAX_POOL_2D", "GATHER", "RESHAPE")
OPERATORS = {
    "CONV_2D": _convolution,
    "FULLY_CONNECTED": _dense,
    "MAX_POOL_2D": functools.partial(_pooling, tf.nn.max_pool2d),
    "AVERAGE_POOL_2D": functools.partial(_pooling, _average),
    "ADD": functools.partial(_elementwise, operator.add),
    "SUB": functools.partial(_elementwise, operator.sub),
    "MUL": functools.partial(_elementwise, operator.mul),
    "MEAN": _mean,
    "GATHER": _gather,
    "RESHAPE": _reshape,
    "RELU": _relu,
}
