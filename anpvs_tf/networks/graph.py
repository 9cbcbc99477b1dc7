"""The graph of a functional network: its layer calls in order, and the kinds of layers."""

import dataclasses
import functools
import inspect
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import bayesian
from anpvs_tf.networks.gate import Gate
from anpvs_tf.networks.shared_dropout import PairedDropout

layers = keras.layers
Tensor = tf.Tensor | keras.KerasTensor
LINEAR = (layers.Conv1D, layers.Conv2D, layers.Dense)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
TRANSPOSED = (layers.Conv2DTranspose,)
AFFINE = (layers.BatchNormalization, layers.Normalization, layers.Rescaling)
IDENTITY = (layers.Dropout, layers.SpatialDropout2D, layers.GaussianDropout, layers.GaussianNoise)
IDENTITY += (layers.Identity, PairedDropout)
POOLING = (layers.MaxPooling2D, layers.AveragePooling2D)
POOLING += (layers.MaxPooling1D, layers.AveragePooling1D)
GLOBAL_POOLING = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
GLOBAL_POOLING += (layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D)
_MOVING = (layers.UpSampling1D, layers.UpSampling2D, layers.Cropping1D, layers.Cropping2D)
_MOVING += (layers.Permute, layers.RepeatVector)
# No rule here follows calls of these with training=True.
_OTHERWISE_IN_TRAINING = (*IDENTITY, layers.BatchNormalization)
ELEMENTWISE = (layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Activation)

# The kind of each type of layer: how it treats channels (the last axis).
#   dense, convolution, transposed      an output channel reads all input channels by a kernel, or
#                those of its group
#   depthwise    each output channel reads one input channel by a kernel
#   gate, affine x * scale + shift, with numbers for each channel
#   identity     nothing, in inference
#   elementwise  a function of each value
#   prelu        the same, with numbers for each channel and perhaps place
#   pooling      values of one channel at several places, constants and positive factors pass
#   merge        a function of the values at one place of tensors, broadcast; of zeros it is 0
#   multiply     a product of tensors, which may be broadcast
#   flatten, reshape, padding, concatenate: as their names say
#   whole        anything else: it reads and makes all channels, and nothing is removed there
# `pruning.layer_rules` has a class for each.
LINEAR_KINDS = ("dense", "convolution", "transposed")
KINDS = (
    *(*LINEAR_KINDS, "depthwise", "gate", "affine", "identity", "elementwise", "prelu", "pooling"),
    *("merge", "multiply", "flatten", "reshape", "padding", "concatenate", "whole"),
)
_kind_of_type: dict[type, str] = {
    layers.Dense: "dense",
    **dict.fromkeys((layers.Conv1D, layers.Conv2D), "convolution"),
    **dict.fromkeys(TRANSPOSED, "transposed"),
    **dict.fromkeys(DEPTHWISE, "depthwise"),
    **dict.fromkeys(AFFINE, "affine"),
    **dict.fromkeys(IDENTITY, "identity"),
    **dict.fromkeys(ELEMENTWISE, "elementwise"),
    layers.PReLU: "prelu",
    **dict.fromkeys(POOLING + GLOBAL_POOLING + _MOVING, "pooling"),
    **dict.fromkeys((layers.Add, layers.Average, layers.Subtract), "merge"),
    **dict.fromkeys((layers.Maximum, layers.Minimum), "merge"),
    layers.Multiply: "multiply",
    layers.Flatten: "flatten",
    layers.Reshape: "reshape",
    **dict.fromkeys((layers.ZeroPadding1D, layers.ZeroPadding2D), "padding"),
    layers.Concatenate: "concatenate",
}
# A Bayesian layer is of its parent's kind, with the posterior means.
_kind_of_type |= {
    layer_type: next(kind for base, kind in _kind_of_type.items() if issubclass(layer_type, base))
    for layer_type in bayesian.LAYERS
}
# The kinds that a user's own layer may be of: the rules of the others read the layer's attributes.
REGISTRABLE = ("identity", "elementwise", "pooling", "merge", "multiply", "whole")
_MERGING_OPERATORS = {"Add": "merge", "Subtract": "merge", "Multiply": "multiply"}


def register_layer_rule(layer_type: type[keras.layers.Layer], kind: str) -> None:
    """Says what a user's own layer does to channels, so that features may be pruned through it.

    A layer without a rule is passed whole: right, but nothing is removed in front of it.
    The layer is trusted: a wrong rule gives a frozen network that computes something else.

    Args:
        layer_type: whose `call` takes the same inputs at any number of channels.
        kind: one of `REGISTRABLE`, see `KINDS`; a layer with weights can only be "whole".

    Raises:
        UsageError: another kind.
    """
    if kind not in REGISTRABLE:
        raise UsageError(f"unknown kind of layer {kind!r}; choose one of {', '.join(REGISTRABLE)}")
    _kind_of_type[layer_type] = kind


@dataclasses.dataclass(frozen=True)
class Node:
    """A call of a layer or operation; tensors are named by number.

    Attributes:
        kind: one of `KINDS`.
        arguments: of the call, as Keras holds them.
    """

    layer: keras.layers.Layer
    inputs: tuple[int, ...]
    output: int
    input_shapes: tuple[tuple, ...]
    output_shape: tuple
    kind: str
    arguments: object

    @functools.cached_property
    def reads(self) -> list[np.ndarray] | None:
        """The channel of each input that each output channel is made of, -1 for none.

        None for a layer that mixes channels.
        """
        if self.kind in (*LINEAR_KINDS, "whole"):
            return None
        widths = [shape[-1] for shape in self.input_shapes]
        channels = np.arange(self.output_shape[-1])
        if self.kind == "depthwise":
            return [channels // (len(channels) // widths[0])]
        if self.kind != "concatenate":
            return [channels % width for width in widths]
        starts = np.cumsum([0, *widths[:-1]])
        places = [channels - start for start in starts]
        return [
            np.where((at >= 0) & (at < width), at, -1)
            for at, width in zip(places, widths, strict=True)
        ]

    def call(self, tensors: list, layer: keras.layers.Layer | None = None) -> Tensor:
        """Repeats the call in inference, on other tensors, by `layer` or the layer itself."""
        return _call_again(layer or self.layer, self.arguments, dict(self._named(tensors)))

    def repeat(self, tensors: list, layer: keras.layers.Layer) -> Tensor:
        """Repeats the call as it was made, in training too, on other tensors, by `layer`."""
        args, kwargs = self.arguments.fill_in(dict(self._named(tensors)))
        return layer(*args, **kwargs)

    def of_vectors(self, vectors: list[tf.Tensor]) -> tf.Tensor:
        """Repeats the call at one place on constants [channels]; the layer has no weights."""
        places = [1] * (len(self.output_shape) - 1)
        tensors = [tf.reshape(vector, [*places, -1]) for vector in vectors]
        if isinstance(self.layer, layers.Layer):
            return tf.reshape(self.call(tensors, floating(self.layer)), [-1])
        return tf.reshape(self.call(tensors), [-1])

    def _named(self, tensors: list):
        return zip(self.inputs, tensors, strict=True)


def _call_again(operation, arguments, tensors: dict[int, tf.Tensor]):
    args, kwargs = arguments.fill_in(tensors)
    if isinstance(operation, layers.Layer):
        kwargs.pop("training", None)
        if "training" in inspect.signature(operation.call).parameters:
            kwargs["training"] = False
    return operation(*args, **kwargs)


def floating(layer: layers.Layer) -> layers.Layer:
    """Copies a layer without weights; the copy computes in the dtype of its input."""
    copy = type(layer).from_config(layer.get_config() | {"dtype": "float32"})
    copy.autocast = False
    return copy


def copy_state(layer: layers.Layer, other: layers.Layer) -> None:
    """Copies the weights of a layer, and of those in it, to another that was made like it.

    Unlike `get_weights`, with the values that the layer derives from them (Normalization's mean).
    """
    both = (layer._flatten_layers(), other._flatten_layers())
    for one, its_copy in zip(*both, strict=True):
        held: dict = {}
        one.save_own_variables(held)
        if held:
            its_copy.load_own_variables(held)


def logits_of(network: keras.Model) -> keras.KerasTensor:
    """Returns the symbolic tensor of a network's logits: its output, or its output "logits"."""
    return network.output["logits"] if isinstance(network.output, dict) else network.outputs[0]


def latents_of(network: keras.Model) -> dict[str, int]:
    """Returns {latent layer: number of its tensor}: a network's outputs without "logits"."""
    named = network.output if isinstance(network.output, dict) else {}
    return {name: id(tensor) for name, tensor in named.items() if name != "logits"}


def opened(model: keras.Model) -> keras.Model:
    """Opens the models inside a model: returns a copy with their layers, or `model` if none.

    A separable convolution becomes a depthwise one, "<name>_depthwise", and one of 1 x 1.

    Raises:
        UsageError: layers of the same name, or a nested model that is not functional.
    """
    if not any(isinstance(layer, keras.Model) or _is_separable(layer) for layer in model.layers):
        return model
    copies: dict[int, tuple] = {}

    def run(model, inputs):
        if isinstance(model, keras.Sequential):
            model.build() if not model.built else None
            model = model._functional
        if not hasattr(model, "_run_through_graph"):
            raise UsageError(
                f"the model {model.name!r} inside is a {type(model).__name__}; make it functional"
            )
        return model._run_through_graph(inputs, operation_fn=lambda operation: again(operation))

    def again(operation):
        if isinstance(operation, keras.Model):
            return lambda inputs, **_: run(operation, inputs)
        if not isinstance(operation, layers.Layer):
            return operation
        if id(operation) not in copies:
            if _is_separable(operation):
                parts = _separated(operation)
            else:
                parts = (type(operation).from_config(operation.get_config()),)
            copies[id(operation)] = operation, parts
        parts = copies[id(operation)][1]
        return parts[0] if len(parts) == 1 else lambda inputs, **_: parts[1](parts[0](inputs))

    image = model.inputs[0]
    copy_image = keras.Input(batch_shape=image.shape, dtype=image.dtype, name=image.name)
    output = run(model, copy_image)
    names = [part.name for _, parts in copies.values() for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"{model.name} has two layers {name!r}, one in a model inside: rename one"
            )
    for layer, parts in copies.values():
        if len(parts) == 1:
            copy_state(layer, *parts)
        else:
            parts[0].kernel.assign(layer.depthwise_kernel)
            parts[1].set_weights(layer.get_weights()[1:])
    return keras.Model(copy_image, output, name=model.name)


def _is_separable(layer) -> bool:
    return type(layer) is layers.SeparableConv2D and layer.data_format == "channels_last"


def _separated(layer: layers.SeparableConv2D) -> tuple[layers.Layer, layers.Layer]:
    """Makes the two convolutions of which a separable one consists, without its weights."""
    config = layer.get_config()

    def of(part: str) -> dict:
        names = ("initializer", "regularizer", "constraint")
        return {name: config[f"{part}_{name}"] for name in names}

    same = {"dtype": config["dtype"], "trainable": layer.trainable}
    depthwise = layers.DepthwiseConv2D(
        layer.kernel_size,
        layer.strides,
        layer.padding,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate,
        use_bias=False,
        name=f"{layer.name}_depthwise",
        **{f"depthwise_{name}": value for name, value in of("depthwise").items()},
        **same,
    )
    pointwise = layers.Conv2D(
        layer.filters,
        1,
        activation=layer.activation,
        use_bias=layer.use_bias,
        activity_regularizer=config["activity_regularizer"],
        name=layer.name,
        **{f"kernel_{name}": value for name, value in of("pointwise").items()},
        **{f"bias_{name}": value for name, value in of("bias").items()},
        **same,
    )
    return depthwise, pointwise


def check_input(network: keras.Model) -> None:
    """Raises UsageError unless a model is functional with one input of floats."""
    inputs = getattr(network, "inputs", None) or ()
    if len(inputs) != 1 or not hasattr(network, "_nodes_by_depth"):
        raise UsageError(
            f"{network.name} cannot be frozen: it must be a functional model with one input "
            f"(keras.Model(inputs, outputs)); it is a {type(network).__name__} with "
            f"{len(inputs)} known inputs"
        )
    if not keras.backend.is_float_dtype(inputs[0].dtype):
        raise UsageError(
            f"{network.name} takes {inputs[0].dtype} images: fractions of [0, 1] would become 0; "
            "give it a float input, in front of its Rescaling"
        )


@functools.lru_cache(maxsize=256)
def is_elementwise(activation: Callable) -> bool:
    """Says whether each value of an activation depends on the input at its place alone.

    Tries the function on some numbers, because a user's own can be any: softmax and its kind
    mix channels, so that the removal of one channel changes the others.
    """
    with tf.init_scope():
        numbers = tf.reshape(tf.linspace(-3.0, 3.3, 24), [2, 2, 2, 3])
        together = np.asarray(activation(numbers))
        if together.shape != numbers.shape:
            return False
        alone = [
            np.asarray(activation(tf.reshape(x, [1, 1, 1, 1]))).item()
            for x in tf.reshape(numbers, [-1])
        ]
    return bool(np.allclose(together.ravel(), alone, rtol=1e-5, atol=1e-6, equal_nan=True))


def _vector_problem(layer: keras.layers.Layer, width: int) -> str | None:
    """Says why a Normalization or Rescaling is not one number a channel; None if it is."""
    if isinstance(layer, layers.Normalization):
        if layer.invert:
            return "invert=True is not supported"
        held = {"mean": layer.mean, "variance": layer.variance}
        if None in held.values():
            return "it has no mean and variance; call its adapt, or give them"
    else:
        held = {"scale": layer.scale, "offset": layer.offset}
    for name, value in held.items():
        shape = np.shape(value)
        if np.prod(shape, dtype=int) not in (1, shape[-1] if shape else 1) or (
            shape and shape[-1] not in (1, width)
        ):
            return f"its {name} of shape {shape} is not one number for each of {width} channels"
    return None


def nodes_of(network: keras.Model, output) -> list[Node]:
    """Returns the layer calls between a functional model's input and `output`, in order.

    Raises:
        UsageError: not a functional model of one input, or a layer that freezing
            cannot handle, by name.
    """
    check_input(network)
    by_depth = network._nodes_by_depth
    calls = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    wanted = {id(output)}
    kept = []
    for call in reversed(calls):
        if isinstance(call.operation, keras.layers.InputLayer):
            continue
        if not any(id(tensor) in wanted for tensor in call.outputs):
            continue
        wanted |= {id(tensor) for tensor in call.input_tensors}
        kept.append(call)
    nodes = [_node(call) for call in reversed(kept)]
    last = nodes[-1].layer
    if nodes[-1].kind == "whole" and not getattr(last, "weights", ()):
        raise UsageError(
            f"layer {last.name!r} cannot be frozen: it is of type {type(last).__name__}; a network "
            "must end in logits, without softmax"
        )
    return nodes


def _node(call) -> Node:
    layer = call.operation
    kind, reason = _kind(call), None
    if len(call.outputs) != 1:
        reason = f"it has {len(call.outputs)} outputs"
    elif isinstance(layer, _OTHERWISE_IN_TRAINING) and call.arguments.kwargs.get("training"):
        reason = "it is called with training=True, so that it trains and draws in inference too"
    elif getattr(layer, "lora_enabled", False):
        reason = "it has LoRA weights beside its kernel; assign its kernel to a layer without them"
    elif getattr(layer, "quantization_mode", None):
        reason = (
            f"its weights are quantized ({layer.quantization_mode}); give the unquantized network"
        )
    elif activation := getattr(layer, "activation", None):
        if not is_elementwise(activation):
            reason = (
                f"its activation {getattr(activation, '__name__', activation)} mixes channels; a "
                "network must end in logits, without softmax, and use elementwise activations "
                "inside"
            )
    elif isinstance(layer, layers.Normalization | layers.Rescaling):
        reason = _vector_problem(layer, call.outputs[0].shape[-1])
    if reason:
        raise UsageError(f"layer {layer.name!r} cannot be frozen: {reason}")
    return Node(
        layer,
        tuple(id(tensor) for tensor in call.input_tensors),
        id(call.outputs[0]),
        tuple(tensor.shape for tensor in call.input_tensors),
        call.outputs[0].shape,
        kind,
        call.arguments,
    )


def _kind(call) -> str:
    """Returns the kind of a call; "whole" if one of its options is beyond its type's rule."""
    layer, output = call.operation, call.outputs[0].shape
    inputs = [tensor.shape for tensor in call.input_tensors]
    if isinstance(layer, Gate):
        return "gate"
    kind = _kind_of_type.get(type(layer))
    if kind is None:
        kind = "affine" if is_layer_scale(layer) else _kind_of_unknown(call, inputs, output)
    if kind == "convolution" and 1 < layer.groups == inputs[0][-1]:
        kind = "depthwise"
    return "whole" if _is_beyond(kind, layer, inputs, output) else kind


def is_layer_scale(layer) -> bool:
    """Says whether a layer is the `LayerScale` of keras.applications, which is not public."""
    return type(layer).__name__ == "LayerScale" and type(layer).__module__.startswith("keras.")


def _is_beyond(kind: str, layer, inputs: list[tuple], output: tuple) -> bool:
    """Says whether an option of a layer, or a shape, is beyond the rule of its kind."""
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return True
    if isinstance(layer, layers.BatchNormalization | layers.Concatenate):
        return layer.axis not in (-1, len(output) - 1)
    if isinstance(layer, layers.Permute):
        return layer.dims[-1] != len(output) - 1
    if kind in ("merge", "multiply"):
        return any(len(s) != len(output) or s[-1] not in (1, output[-1]) for s in inputs)
    if kind == "reshape":
        return inputs[0][-1] != output[-1] or None in output[1:]
    return getattr(layer, "padding", None) == "causal"


def _kind_of_unknown(call, inputs: list[tuple], output: tuple) -> str:
    """Finds the kind of an operator, or of a layer without a rule by a try on numbers."""
    layer = call.operation
    if len(inputs) == 2 and not isinstance(layer, layers.Layer):
        return _MERGING_OPERATORS.get(type(layer).__name__, "whole")
    if len(inputs) != 1 or inputs[0] != output or getattr(layer, "weights", ()):
        return "whole"
    number = id(call.input_tensors[0])
    try:
        same = is_elementwise(lambda x: _call_again(layer, call.arguments, {number: x}))
    except Exception:  # A user's own layer may raise anything for shapes that it does not expect.
        return "whole"
    return "elementwise" if same else "whole"


def hidden(nodes: list[Node]) -> list[Node]:
    """Returns the calls of convolutions and dense layers before the logits'."""
    return [node for node in nodes if node.kind in LINEAR_KINDS][:-1]
