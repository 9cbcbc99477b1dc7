"""A network made from the user's own Keras model file."""

import os
import zlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from anpvs_tf.common.errors import UsageError, one_line
from anpvs_tf.networks import final_activation, graph, input_ranges, keras_archive
from anpvs_tf.networks.gating import add_gates

layers = keras.layers
UNIT = (0.0, 1.0)


def network_of(
    path: str | os.PathLike,
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    name: str = "network",
    gate: str | None = None,
    gate_scope: str = "all",
    coupled: bool = False,
    seed: int = 0,
    dtype: str = "float32",
    pretrained: bool = True,
    input_range: tuple[float, float] | None = None,
    say: Callable[[str], None] | None = None,
) -> keras.Model:
    """Makes the network of a run from a file: images in [0, 1] -> {"logits": ..., "<layer>": ...}.

    The model is loaded in Keras's safe mode. A last softmax or sigmoid is taken away; where the
    number of classes is another, the last dense layer is replaced by one of `classes` outputs; a
    model that takes other values than 0 for black and 1 for white gets a Rescaling in front.
    All layers are trainable, whatever the file says.

    Args:
        path: a functional or sequential classifier whose last layer is dense.
        image_shape: (height, width, channels) of the images.
        classes: number of classes, at least 2.
        name: of the network, for messages.
        gate, gate_scope, coupled: as `kind`, `scope` and `coupled` of `add_gates`.
        seed: of initial weights: those of a head that is replaced, or all.
        dtype: Keras dtype policy of all layers but the logits.
        pretrained: keep the weights of the file; without, only the statistics that a
            Normalization has learned of its data are kept.
        input_range: the values that the model takes for black and white; None to read them off
            its first layers, or its dtype, else 0 and 1.
        say: called with a line for each change, and each assumption, that a user should know.

    Raises:
        UsageError: the file cannot be used, does not fit images or classes, or has a layer
            that `add_gates` refuses.
    """
    say = say or (lambda line: None)
    keras_archive.check(path)
    model, (found, seen) = _loaded(path, name)
    model, ending = _with_logits(graph.opened(model), name)
    if ending:
        say(f"{name}: its last {ending} is taken away; the network returns logits")
    if held := [layer.name for layer in model.layers if layer.weights and not layer.trainable]:
        say(
            f"{name}: {len(held)} layer(s) that the file holds as not trainable are trained, "
            f"{held[0]} first; --freeze_below=LAYER freezes that layer and all before it"
        )
    if seen and input_range is None:
        say(
            f"{name}: black is taken as {found[0]:g}, white as {found[1]:g} ({seen}); "
            "--input_range says otherwise"
        )
    _check_images(model, name, image_shape)
    head = model.outputs[0]._keras_history.operation
    if head.units != classes:
        say(f"{name}: {_said_of_head(head, classes, pretrained)}")
    copy = _copy(model, image_shape, classes, seed, dtype, input_range or found)
    for layer in model.layers:
        if layer is head and head.units != classes:
            _begin_head(head, copy.get_layer(head.name), pretrained)
        elif layer.weights and (pretrained or isinstance(layer, layers.Normalization)):
            graph.copy_state(layer, copy.get_layer(layer.name))
    return add_gates(
        keras.Model(copy.inputs[0], copy.outputs[0], name=name), gate, gate_scope, coupled
    )


def _loaded(path: str | os.PathLike, name: str) -> tuple[keras.Model, tuple]:
    """Loads a functional model of one float input and one output.

    Raises:
        UsageError: the file holds none.
    """
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras's loader raises many kinds.
        raise UsageError(f"{path} cannot be loaded: {one_line(error)}") from error
    if isinstance(model, keras.Sequential) and model.built:
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    inputs, outputs = (getattr(model, side, None) or () for side in ("inputs", "outputs"))
    if len(inputs) != 1 or len(outputs) != 1:
        raise UsageError(
            f"{name} has {len(inputs)} inputs and {len(outputs)} outputs; a classifier has one of "
            "each (a network with gates has more outputs: give --base_run=RUN, or the file "
            "before add_gates)"
        )
    # Before the input is of floats: that it takes integers tells the range.
    found = input_ranges.of_keras(model)
    if input_ranges.takes_integers(model):
        model = input_ranges.with_float_input(model)
    return model, found


def _with_logits(model: keras.Model, name: str) -> tuple[keras.Model, str]:
    """Removes the last dense layer's activation; returns the model and the activation's name.

    The name is "" if there was no activation.
    """
    model, ending = final_activation.without(model)
    last = model.outputs[0]._keras_history.operation
    while isinstance(last, layers.Activation) and last.activation is keras.activations.linear:
        model = keras.Model(model.inputs, last.input)
        last = model.outputs[0]._keras_history.operation
    if not isinstance(last, layers.Layer):
        raise UsageError(
            f"{name} ends in {type(last).__name__} of keras.ops; end in logits, or in a layer: "
            "keras.layers.Softmax, or the activation of the last Dense"
        )
    if not isinstance(last, layers.Dense) or len(model.outputs[0].shape) != 2:
        raise UsageError(
            f"{name} ends in {type(last).__name__} {last.name!r}; a classifier must end in a Dense "
            "layer of one output a class, with softmax, sigmoid or no activation"
        )
    if last.activation is not keras.activations.linear:
        raise UsageError(
            f"{name} ends in the activation {last.activation.__name__} of layer {last.name!r}, "
            "which cannot be taken away; end in logits or softmax"
        )
    return model, ending


def _check_images(model: keras.Model, name: str, image_shape: tuple[int, int, int]) -> None:
    taken = tuple(model.inputs[0].shape[1:])
    fits = len(taken) == 3 and all(t in (None, n) for t, n in zip(taken, image_shape, strict=True))
    if not fits:
        sizes = [" x ".join("any" if n is None else str(n) for n in taken), ""]
        sizes[1] = " x ".join(map(str, image_shape))
        raise UsageError(
            f"{name} takes images of {sizes[0]}, the dataset's are {sizes[1]} (height, width, "
            "channels); --image_size and --channels change images of folder: and tfds:"
        )


def _said_of_head(head: layers.Dense, classes: int, pretrained: bool) -> str:
    if _is_binary(head, classes):
        return f"the one output of {head.name!r} becomes the logit of class 1, beside 0 for class 0"
    kept = ", the other weights are kept" if pretrained else ""
    return (
        f"its last layer {head.name!r} has {head.units} outputs, the dataset {classes} classes: it "
        f"is replaced by one of new weights{kept}"
    )


def _is_binary(head: layers.Dense, classes: int) -> bool:
    """Says whether one output decides between two classes: sigmoid(z) is softmax((0, z))."""
    return head.units == 1 and classes == 2


def _begin_head(head: layers.Dense, new: layers.Dense, pretrained: bool) -> None:
    if not (pretrained and _is_binary(head, new.units)):
        return
    for old, variable in zip(head.get_weights(), new.weights, strict=True):
        variable.assign(np.concatenate([np.zeros_like(old), old], axis=-1))


def _copy(
    model: keras.Model,
    image_shape: tuple[int, int, int],
    classes: int,
    seed: int,
    dtype: str,
    black_and_white: tuple[float, float],
) -> keras.Model:
    """Makes the layers of a model anew: with initial weights, for images in [0, 1]."""
    head = model.outputs[0]._keras_history.operation
    copies: dict[int, layers.Layer] = {}

    def again(layer):
        if not isinstance(layer, layers.Layer):
            return layer  # An operation, such as x * 2, holds nothing.
        if id(layer) not in copies:
            config = layer.get_config() | {"trainable": True, "dtype": dtype}
            if layer is head:
                # float32: cross-entropy and attacks need its resolution.
                config |= {"units": classes, "dtype": "float32"}
            copies[id(layer)] = type(layer).from_config(_seeded(config, seed))
        return copies[id(layer)]

    names = {layer.name for layer in model.layers}
    images = x = keras.Input(image_shape, name=_unused("images", names))
    low, high = black_and_white
    if (low, high) != UNIT:
        x = layers.Rescaling(high - low, low, name=_unused("input_range", names), dtype=dtype)(x)
    (output,) = keras.tree.flatten(model._run_through_graph([x], operation_fn=again))
    return keras.Model(images, output)


def _unused(name: str, names: set[str]) -> str:
    """Lengthens a name until it is none of `names`."""
    while name in names:
        name += "_"
    return name


def _seeded(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Changes a layer's configuration: initial weights follow from `seed` and its name."""
    found = dict(config)
    for key, value in config.items():
        if isinstance(value, dict) and "seed" in value.get("config", ()):
            own = zlib.crc32(f"{seed}/{config['name']}/{key}".encode())
            found[key] = value | {"config": value["config"] | {"seed": own}}
    return found
