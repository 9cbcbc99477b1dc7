"""Gates for any functional Keras classifier."""

import keras

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import graph
from anpvs_tf.networks.beta_bernoulli import BetaBernoulliGate
from anpvs_tf.networks.gate import Gate, gates_of
from anpvs_tf.networks.graph import LINEAR, Node
from anpvs_tf.networks.information_bottleneck import InformationBottleneckGate
from anpvs_tf.networks.shared_dropout import PairedDropout

GATE_KINDS: dict[str, type[Gate]] = {
    "beta_bernoulli": BetaBernoulliGate,
    "information_bottleneck": InformationBottleneckGate,
}
# The rank of the features that are gated: maps [batch, H, W, C], or flat [batch, features].
GATE_SCOPES: dict[str, tuple[int, ...]] = {"all": (2, 4), "conv": (4,), "dense": (2,)}

# What a gated feature may pass on its way to a convolution or dense layer.
_CHANNELWISE = graph.IDENTITY + graph.AFFINE + graph.POOLING + graph.GLOBAL_POOLING
_CHANNELWISE += graph.ELEMENTWISE + graph.DEPTHWISE
_CHANNELWISE += (keras.layers.Flatten, keras.layers.ZeroPadding2D)

_NOISY = (
    keras.layers.SpatialDropout2D,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)


def make_gate(kind: str, name: str, dtype, initial_a_raw: float) -> Gate:
    """A gate as a network begins with it.

    Args:
        kind: a key of `GATE_KINDS`.
        initial_a_raw: of a beta-Bernoulli gate, whose published initial value goes by the
            layer; an information-bottleneck gate begins everywhere alike.

    Raises:
        UsageError: unknown kind.
    """
    _check("kind", kind, GATE_KINDS)
    chosen = {"initial_a_raw": initial_a_raw} if kind == "beta_bernoulli" else {}
    return GATE_KINDS[kind](name=name, dtype=dtype, **chosen)


def in_scope(shape: tuple, scope: str) -> bool:
    """Whether features of a shape, (None, H, W, C) or (None, features), are gated in `scope`.

    Raises:
        UsageError: not a key of `GATE_SCOPES`.
    """
    _check("scope", scope, GATE_SCOPES)
    return len(shape) in GATE_SCOPES[scope]


def _check(what: str, name: str, known: dict) -> None:
    if name not in known:
        raise UsageError(f"unknown gate {what} {name!r}; choose one of {', '.join(known)}")


def add_gates(
    model: keras.Model, kind: str | None = "beta_bernoulli", scope: str = "all"
) -> keras.Model:
    """Returns a copy of a classifier that is ready for `RobustClassifier`.

    The copy has the model's weights in variables of its own, dropout that the copies
    of an example share, an output for each activation, and a gate after each
    activation whose every use is a convolution or a dense layer, with pooling,
    flatten and the like between. An activation that an addition or concatenation
    reads stays as it is: its features could not be removed while the other branch
    needs them.

    Args:
        model: functional, images [batch, H, W, C] in [0, 1] -> logits [batch, classes];
            made of the layers that `FrozenNetwork` supports.
        kind: a key of `GATE_KINDS`; None adds the outputs only.
        scope: a key of `GATE_SCOPES`: gates on feature maps and flat features ("all"),
            or on one of them only.

    Returns:
        A functional model: images -> {"logits": ..., "<activation's layer>": ...}.

    Raises:
        UsageError: unknown kind or scope, a layer that could not be frozen later, a model
            without a place for a gate, or one that calls a layer twice.
    """
    if kind is not None:
        _check("kind", kind, GATE_KINDS)
    if isinstance(model, keras.Sequential) and model.built:
        model = keras.Model(model.inputs, model.outputs, name=model.name)
    graph.check_input(model)
    shape = model.inputs[0].shape
    if len(shape) != 4 or None in shape[1:]:
        raise UsageError(
            f"{model.name} takes inputs {tuple(shape)}; it must take images of one "
            "size, (None, height, width, channels)"
        )
    if len(model.outputs) != 1:
        raise UsageError(
            f"{model.name} has {len(model.outputs)} outputs; it must have one, the logits"
            + (": it has gates already" if gates_of(model) else "")
        )
    nodes = graph.nodes_of(model, model.outputs[0])
    names = [node.layer.name for node in nodes]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"layer {name!r} is called more than once; gates need one call each")
    for node in nodes:
        if isinstance(node.layer, _NOISY):
            raise UsageError(
                f"layer {node.layer.name!r} draws noise that the copies of an example would not "
                "share; use Dropout instead"
            )
    activations = [node for node in nodes[:-1] if _activates(node.layer)]
    gated = set()
    for node in activations if kind else ():
        if in_scope(node.output_shape, scope) and _removable(node.output, nodes):
            gated.add(node.layer.name)
    if kind is not None and not gated:
        raise UsageError(
            f"{model.name} has no activation whose features could be removed (scope {scope!r})"
        )
    latents = dict.fromkeys(node.layer.name for node in activations)
    taken = {f"{name}_gate" for name in gated} & set(names) | {"logits"} & set(latents)
    if taken:
        raise UsageError(
            f"the name of layer {min(taken)!r} is needed for an output or a gate; rename it"
        )

    def call(layer, *args, **kwargs):
        if type(layer) is keras.layers.Dropout:
            # The clean and the adversarial copy of an example must share their noise.
            layer = PairedDropout(
                layer.rate,
                noise_shape=layer.noise_shape,
                name=layer.name,
                dtype=layer.dtype_policy,
            )
        outputs = layer(*args, **kwargs)
        if layer.name in gated:
            # Published: 2 for convolutions, -1 for dense layers.
            initial = 2.0 if len(outputs.shape) == 4 else -1.0
            outputs = make_gate(kind, f"{layer.name}_gate", layer.dtype_policy, initial)(outputs)
        if layer.name in latents:
            latents[layer.name] = outputs
        return outputs

    # A user's own activation is a plain function, which Keras finds again by its name alone.
    activations_used = [getattr(node.layer, "activation", None) for node in nodes]
    own = {f.__name__: f for f in activations_used if hasattr(f, "__name__")}
    with keras.saving.custom_object_scope(own):
        copy = keras.models.clone_model(model, call_function=call)
    network = keras.Model(copy.inputs, {"logits": copy.outputs[0], **latents}, name=model.name)
    for layer in model.layers:
        if layer.weights:
            # Unlike `get_weights`, with what the layer derives from them (Normalization's mean).
            held: dict = {}
            layer.save_own_variables(held)
            network.get_layer(layer.name).load_own_variables(held)
    return network


def _activates(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, graph.ELEMENTWISE):
        return True
    activation = getattr(layer, "activation", keras.activations.linear)
    return activation is not keras.activations.linear


def _removable(tensor: int, nodes: list[Node]) -> bool:
    """Whether every use of a tensor ends in a convolution or dense layer."""
    users = [node for node in nodes if tensor in node.inputs]
    if not users:
        return False  # An output of the network.
    for node in users:
        if isinstance(node.layer, LINEAR):
            continue
        if _activates(node.layer) and not isinstance(node.layer, graph.DEPTHWISE):
            return False  # The gate goes after that activation instead.
        if not isinstance(node.layer, _CHANNELWISE) or not _removable(node.output, nodes):
            return False
    return True
