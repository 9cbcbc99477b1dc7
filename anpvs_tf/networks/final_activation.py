"""The logits of a Keras model that ends in softmax or sigmoid."""

import keras

# The class of the largest output is that of the largest input.
_MONOTONE = ("softmax", "sigmoid")
# Layers whose activation is the last thing that they do; a recurrent layer's is not.
_LAST = (keras.layers.Dense, keras.layers.Activation)


def without(model: keras.Model) -> tuple[keras.Model, str]:
    """Removes the last softmax or sigmoid: a gradient through it vanishes, and misleads.

    Args:
        model: functional or sequential with one output; any other model is returned as it is.

    Returns:
        A model of the same weights, and the activation's name; "" if nothing was removed.
    """
    if len(getattr(model, "outputs", None) or ()) != 1:
        return model, ""
    layer = model.outputs[0]._keras_history.operation
    if not isinstance(layer, keras.layers.Layer) or len(layer._inbound_nodes) != 1:
        return model, ""
    if isinstance(layer, keras.layers.Softmax) and layer.axis in (-1, 1):
        return keras.Model(model.inputs, layer.input), "softmax"
    name = getattr(getattr(layer, "activation", None), "__name__", "")
    if type(layer) not in _LAST or name not in _MONOTONE:
        return model, ""
    linear = type(layer).from_config(layer.get_config() | {"activation": "linear"})
    bare = keras.Model(model.inputs, linear(layer.input))
    linear.set_weights(layer.get_weights())
    return bare, name
