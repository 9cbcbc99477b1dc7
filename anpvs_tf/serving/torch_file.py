"""The PyTorch files of a frozen network: model.py, which needs torch alone, and its weights."""

import dataclasses
import io
import keyword
import pathlib
import re
from collections.abc import Callable

import keras
import numpy as np

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import graph
from anpvs_tf.pruning.compact import Affine, Select

layers = keras.layers

MODULE = '''\
"""{name}, a network from anpvs_tf, for PyTorch; needs torch alone.

`load()` returns it with the weights of {weights}, in evaluation mode:
float32 images [batch, {channels}, {height}, {width}] in [0, 1] -> logits [batch, {classes}].
"""

import pathlib

import torch
from torch import nn
from torch.nn import functional

WEIGHTS = pathlib.Path(__file__).with_name("{weights}")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
{fields}

    def forward(self, images):
{steps}
        return {logits}


def load(weights=WEIGHTS, device="cpu"):
    network = Network()
    network.load_state_dict(torch.load(weights, map_location=device, weights_only=True))
    return network.to(device).eval()
'''
WEIGHTS = "model.pt"

# Of an expression of a tensor, by the name that Keras gives the function.
ACTIVATIONS = {
    "linear": "{}",
    "relu": "functional.relu({})",
    "sigmoid": "torch.sigmoid({})",
    "tanh": "torch.tanh({})",
}


class _NotExpressed(Exception):
    """The reason why a layer is not written."""


@dataclasses.dataclass
class _Written:
    """A call in PyTorch.

    Attributes:
        result: the expression of its output.
        fields: statements that make what the call needs of the module, once.
        weights: {name in the state dict: value}.
    """

    result: str
    fields: list[str] = dataclasses.field(default_factory=list)
    weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def write(frozen: keras.Model, name: str, path: pathlib.Path) -> None:
    """Writes model.py and model.pt, a state dict of tensors alone.

    Raises:
        UsageError: a layer cannot be expressed in PyTorch; the message names it.
    """
    import torch

    source, weights = module_of(frozen, name)
    state = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in weights.items()}
    # Not to the file itself: PyTorch's writer does not say that a disk is full.
    held = io.BytesIO()
    torch.save(state, held)
    (path / WEIGHTS).write_bytes(held.getvalue())
    (path / "model.py").write_text(source, encoding="utf-8")


def module_of(frozen: keras.Model, name: str) -> tuple[str, dict[str, np.ndarray]]:
    """Makes the text of model.py, and {name in the state dict: array}.

    Args:
        frozen: a network from `compact.freeze`.
        name: of the model, for its first line.

    Raises:
        UsageError: as of `write`.
    """
    tensors = {id(frozen.inputs[0]): "images"}
    names: set[str] = set()
    fields, weights, steps = [], {}, []
    for number, node in enumerate(graph.nodes_of(frozen, frozen.outputs[0]), start=1):
        layer = node.layer
        field = _unused(layer.name, names)
        try:
            written = _written(node, field, [tensors[i] for i in node.inputs])
        except _NotExpressed as error:
            raise UsageError(
                f"--format=torch writes no layer like {layer.name}, {error}; use another --format"
            ) from None
        tensors[node.output] = f"x{number}"
        steps.append(f"x{number} = {written.result}")
        fields += written.fields
        weights |= written.weights
    height, width, channels = frozen.inputs[0].shape[1:]
    source = MODULE.format(
        name=_text(name),
        weights=WEIGHTS,
        channels=channels,
        height=height,
        width=width,
        classes=frozen.outputs[0].shape[-1],
        fields="\n".join(f"        {field}" for field in fields),
        steps="\n".join(f"        {step}" for step in steps),
        logits=tensors[id(frozen.outputs[0])],
    )
    return source, weights


def _written(node: graph.Node, field: str, inputs: list[str]) -> _Written:
    kind = type(node.layer)
    if kind not in WRITERS:
        raise _NotExpressed(f"a {kind.__name__}")
    if any(len(shape) not in (2, 4) for shape in node.input_shapes):
        raise _NotExpressed(f"of an input {node.input_shapes[0]}")
    if getattr(node.layer, "data_format", None) == "channels_first":
        raise _NotExpressed("whose data are channels first")
    return WRITERS[kind](node, field, inputs)


# ---- A function for each kind of layer ----


def _convolution(node: graph.Node, field: str, inputs: list[str]) -> _Written:
    layer, (x,) = node.layer, inputs
    kernel, *bias = layer.get_weights()
    depthwise = isinstance(layer, layers.DepthwiseConv2D)
    groups = kernel.shape[2] if depthwise else layer.groups
    if depthwise:
        kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
    settings = [str(kernel.shape[2] * groups), str(kernel.shape[3]), str(kernel.shape[:2])]
    pairs = {"stride": layer.strides, "dilation": layer.dilation_rate}
    if layer.padding == "same":
        ends = [
            _ends(size, extent, stride, dilation)
            for size, extent, stride, dilation in zip(
                node.input_shapes[0][1:3],
                kernel.shape[:2],
                layer.strides,
                layer.dilation_rate,
                strict=True,
            )
        ]
        if all(before == after for before, after in ends):
            pairs["padding"] = tuple(before for before, _ in ends)
        else:
            # From the last axis on: left, right, top, bottom.
            x = f"functional.pad({x}, {[*ends[1], *ends[0]]})"
    elif layer.padding != "valid":
        raise _NotExpressed(f"padded {layer.padding}")
    default = {"stride": (1, 1), "dilation": (1, 1), "padding": (0, 0)}
    settings += [f"{key}={tuple(pair)}" for key, pair in pairs.items() if pair != default[key]]
    if groups != 1:
        settings.append(f"groups={groups}")
    if not bias:
        settings.append("bias=False")
    weights = {f"{field}.weight": kernel.transpose(3, 2, 0, 1)}
    weights |= {f"{field}.bias": value for value in bias}
    made = [f"self.{field} = nn.Conv2d({', '.join(settings)})"]
    return _Written(_activated(layer, f"self.{field}({x})"), made, weights)


def _ends(size: int, extent: int, stride: int, dilation: int) -> tuple[int, int]:
    """Counts the zeros before and after an axis with TensorFlow's "same": the odd one after."""
    missing = (-(-size // stride) - 1) * stride + (extent - 1) * dilation + 1 - size
    missing = max(missing, 0)
    return missing // 2, missing - missing // 2


def _dense(node: graph.Node, field: str, inputs: list[str]) -> _Written:
    if len(node.input_shapes[0]) != 2:
        raise _NotExpressed(f"a Dense of an input {node.input_shapes[0]}")
    kernel, *bias = node.layer.get_weights()
    weights = {f"{field}.weight": kernel.T} | {f"{field}.bias": value for value in bias}
    settings = f"{kernel.shape[0]}, {kernel.shape[1]}{'' if bias else ', bias=False'}"
    made = [f"self.{field} = nn.Linear({settings})"]
    return _Written(_activated(node.layer, f"self.{field}({inputs[0]})"), made, weights)


def _activation(node: graph.Node, field: str, inputs: list[str]) -> _Written:
    return _Written(_activated(node.layer, inputs[0]))


def _activated(layer: keras.layers.Layer, x: str) -> str:
    activation = layer.activation
    name = getattr(activation, "__name__", type(activation).__name__)
    if name not in ACTIVATIONS or activation is not keras.activations.get(name):
        raise _NotExpressed(f"which has the activation {name}")
    return ACTIVATIONS[name].format(x)


def _relu(node: graph.Node, field: str, inputs: list[str]) -> _Written:
    layer = node.layer
    if layer.max_value is not None or layer.negative_slope or layer.threshold:
        raise _NotExpressed("a ReLU that is bounded, leaky or shifted")
    return _Written(ACTIVATIONS["relu"].format(inputs[0]))


def _pooling(function: str) -> Callable:
    def written(node: graph.Node, field: str, inputs: list[str]) -> _Written:
        layer = node.layer
        if layer.padding != "valid":
            raise _NotExpressed(f"padded {layer.padding}")
        places = f"{tuple(layer.pool_size)}, stride={tuple(layer.strides)}"
        return _Written(f"functional.{function}({inputs[0]}, {places})")

    return written


def _global_average(node: graph.Node, field: str, inputs: list[str]) -> _Written:
    kept = ", keepdim=True" if node.layer.keepdims else ""
    return _Written(f"{inputs[0]}.mean((2, 3){kept})")


def _flatten(node: graph.Node, field: str, inputs: list[str]) -> _Written:
    # Channels come last there.
    last = ".permute(0, 2, 3, 1)" if len(node.input_shapes[0]) == 4 else ""
    return _Written(f"{inputs[0]}{last}.flatten(1)")


def _add(node: graph.Node, field: str, inputs: list[str]) -> _Written:
    return _Written(" + ".join(inputs))


def _affine(node: graph.Node, field: str, inputs: list[str]) -> _Written:
    (result,), written = inputs, _Written("")
    for weight, sign in ((node.layer.scale, "*"), (node.layer.shift, "+")):
        if weight is None:
            continue
        value = np.asarray(weight)
        if len(node.input_shapes[0]) == 4:
            value = value.reshape((1,) * (3 - value.ndim) + value.shape).transpose(2, 0, 1)
        name = f"{field}_{'scale' if sign == '*' else 'shift'}"
        result = f"{result} {sign} self.{name}"
        written.fields.append(f"self.{name} = nn.Parameter(torch.empty{value.shape})")
        written.weights[name] = value
    return dataclasses.replace(written, result=result)


def _select(node: graph.Node, field: str, inputs: list[str]) -> _Written:
    layer, (x,) = node.layer, inputs
    indices = f"{field}_indices"
    held = f"torch.empty({len(layer.indices)}, dtype=torch.int64)"
    fields = [f'self.register_buffer("{indices}", {held})']
    weights = {indices: np.array(layer.indices, np.int64)}
    if layer.constants:
        places = (1,) * (len(node.input_shapes[0]) - 2)
        constants = f"{field}_constants"
        value = np.asarray(layer.values).reshape(-1, *places)
        fields.append(f"self.{constants} = nn.Parameter(torch.empty{value.shape})")
        weights[constants] = value
        spread = f"self.{constants}.expand(len({x}), -1, *{x}.shape[2:])"
        x = f"torch.cat([{x}, {spread}], 1)"
    return _Written(f"{x}.index_select(1, self.{indices})", fields, weights)


WRITERS: dict[type, Callable[[graph.Node, str, list[str]], _Written]] = {
    layers.Conv2D: _convolution,
    layers.DepthwiseConv2D: _convolution,
    layers.Dense: _dense,
    layers.Activation: _activation,
    layers.ReLU: _relu,
    layers.MaxPooling2D: _pooling("max_pool2d"),
    layers.AveragePooling2D: _pooling("avg_pool2d"),
    layers.GlobalAveragePooling2D: _global_average,
    layers.Flatten: _flatten,
    layers.Add: _add,
    Affine: _affine,
    Select: _select,
}


# ---- Names ----


def _unused(name: str, names: set[str]) -> str:
    """Makes an attribute name of a layer's, numbered if it is in `names`, and adds it there."""
    wanted = re.sub(r"\W", "_", name)
    # PyTorch's modules have methods such as `half` and `add_module`.
    if not wanted.isidentifier() or keyword.iskeyword(wanted) or wanted in _taken():
        wanted = f"layer_{wanted}"
    found, number = wanted, 1
    while found in names:
        number += 1
        found = f"{wanted}_{number}"
    names.add(found)
    return found


def _taken() -> set[str]:
    from torch import nn

    return set(dir(nn.Module()))


def _text(name: str) -> str:
    """Replaces the characters of a name that may not stand in a docstring."""
    return re.sub(r"[^\w .-]", "_", name)
