"""Gates for any functional Keras classifier."""

import keras

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import bayesian, graph
from anpvs_tf.networks.beta_bernoulli import BetaBernoulliGate
from anpvs_tf.networks.gate import Gate, gates_of
from anpvs_tf.networks.graph import Node
from anpvs_tf.networks.information_bottleneck import InformationBottleneckGate
from anpvs_tf.networks.names import GATE_SCOPES
from anpvs_tf.networks.shared_dropout import PairedDropout

GATE_KINDS: dict[str, type[Gate]] = {
    "beta_bernoulli": BetaBernoulliGate,
    "information_bottleneck": InformationBottleneckGate,
}

# Kinds of layers of one input that keep channels apart and in their places.
_THROUGH = ("identity", "gate", "affine", "pooling", "elementwise", "prelu", "depthwise")
_THROUGH += ("padding", "reshape")

_NOISY = (
    keras.layers.SpatialDropout2D,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)


def make_gate(kind: str, name: str, dtype, initial_a_raw: float) -> Gate:
    """Makes a gate with its initial values.

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
    """Says whether `scope` gates features of a shape, (None, H, W, C) or (None, features).

    Raises:
        UsageError: not a key of `GATE_SCOPES`.
    """
    _check("scope", scope, GATE_SCOPES)
    return len(shape) in GATE_SCOPES[scope]


def _check(what: str, name: str, known: dict) -> None:
    if name not in known:
        raise UsageError(f"unknown gate {what} {name!r}; choose one of {', '.join(known)}")


def add_gates(
    model: keras.Model,
    kind: str | None = "beta_bernoulli",
    scope: str = "all",
    coupled: bool = False,
) -> keras.Model:
    """Returns a copy of a classifier that is ready for `RobustClassifier`.

    The copy has the model's weights in variables of its own, dropout that the copies
    of an example share, an output for each activation, and a gate after each
    activation whose every use is a convolution or a dense layer, with pooling,
    flatten, concatenation and the like between. An activation that an addition reads stays as
    it is: its features could not be removed while the other branch needs them. With `coupled`,
    the layers whose outputs are summed share one gate, so that a feature leaves all of them
    together. Models inside the model are opened, and a separable convolution becomes its two.

    Args:
        model: functional, images [batch, H, W, C] in [0, 1] -> logits [batch, classes].
            A layer that features cannot be pruned through keeps all of them.
        kind: a key of `GATE_KINDS`; None adds the outputs only.
        scope: a key of `GATE_SCOPES`: gates on feature maps and flat features ("all"),
            or on one of them only.
        coupled: gate residual sums too. The gate stands behind each layer that writes to a
            sum, and to the sums that read it, and is called once for each; its name is that of
            the first sum with "_gate". And each layer that writes to a concatenation has a gate
            of its own, so that a feature leaves all that read it.

    Returns:
        A functional model: images -> {"logits": ..., "<activation's layer>": ...}.

    Raises:
        UsageError: unknown kind or scope, a layer that could not be frozen later, a model
            without a place for a gate, or one that calls a layer twice.
    """
    if kind is not None:
        _check("kind", kind, GATE_KINDS)
    model = _opened(model)
    nodes = graph.nodes_of(model, model.outputs[0])
    _check_calls(nodes)
    activations = [node for node in nodes[:-1] if _activates(node.layer)]
    latents = dict.fromkeys(node.layer.name for node in activations)
    gated = _gated_layers(nodes, activations, scope, coupled) if kind is not None else {}
    if kind is not None and not gated:
        raise UsageError(
            f"{model.name} has no activation whose features could be removed (scope {scope!r})"
        )
    taken = set(gated.values()) & {n.layer.name for n in nodes} | {"logits"} & set(latents)
    if taken:
        raise UsageError(
            f"the name of layer {min(taken)!r} is needed for an output or a gate; rename it"
        )
    gates: dict[str, Gate] = {}

    def call(layer, *args, **kwargs):
        layer = _with_shared_noise(layer, args)
        outputs = layer(*args, **kwargs)
        if name := gated.get(layer.name):
            # Published: 2 for convolutions, -1 for dense layers.
            initial = 2.0 if len(outputs.shape) == 4 else -1.0
            if name not in gates:
                policy = getattr(layer, "dtype_policy", None)  # Operators have none.
                gates[name] = make_gate(kind, name, policy, initial)
            outputs = gates[name](outputs)
        if layer.name in latents:
            latents[layer.name] = outputs
        return outputs

    # A user's own activation is a plain function, which Keras finds again by its name alone.
    activations_used = [getattr(node.layer, "activation", None) for node in nodes]
    own = {f.__name__: f for f in activations_used if hasattr(f, "__name__")}
    with keras.saving.custom_object_scope(own):
        copy = keras.models.clone_model(model, call_function=call)
    network = keras.Model(copy.inputs[0], {"logits": copy.outputs[0], **latents}, name=model.name)
    for layer in model.layers:
        if layer.weights:
            graph.copy_state(layer, network.get_layer(layer.name))
    return network


def _opened(model: keras.Model) -> keras.Model:
    """Checks the inputs and outputs of a model, and opens the models inside it.

    Raises:
        UsageError: as `add_gates`.
    """
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
    return graph.opened(model)


def _check_calls(nodes: list[Node]) -> None:
    """Raises UsageError for a layer that is called twice, or one that draws noise of its own."""
    names = [node.layer.name for node in nodes]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"layer {name!r} is called more than once; gates need one call each")
    for node in nodes:
        if _is_noisy(node.layer):
            raise UsageError(
                f"layer {node.layer.name!r} draws noise that the copies of an example would not "
                "share; use Dropout instead"
            )


def _gated_layers(
    nodes: list[Node], activations: list[Node], scope: str, coupled: bool
) -> dict[str, str]:
    """Returns {name of a layer whose output is gated: name of the gate}, as in `add_gates`."""
    shared = _shared_gates(nodes, scope) if coupled else {}
    if coupled:
        shared |= _gates_before_concatenation(nodes, scope, shared)
    makers = {node.output: node for node in nodes}
    ends = _ends(nodes, frozenset(), through_activations=False)
    alone = {
        node.layer.name: f"{node.layer.name}_gate"
        for node in activations
        if node.output in ends
        and not _is_gated(node.output, shared, makers)
        and in_scope(node.output_shape, scope)
    }
    return shared | alone


def _with_shared_noise(layer: keras.layers.Layer, inputs: tuple) -> keras.layers.Layer:
    """Returns the layer, or for dropout one whose mask the copies of an example share."""
    if type(layer) is keras.layers.Dropout:
        rate, noise_shape = layer.rate, layer.noise_shape
    elif _is_stochastic_depth(layer):
        rate = layer.drop_path_rate
        noise_shape = (None, *[1] * (len(inputs[0].shape) - 1))
    else:
        return layer
    return PairedDropout(rate, noise_shape=noise_shape, name=layer.name, dtype=layer.dtype_policy)


def _is_stochastic_depth(layer: keras.layers.Layer) -> bool:
    # keras.applications does not publish the class of its own layer.
    return type(layer).__name__ == "StochasticDepth" and hasattr(layer, "drop_path_rate")


def _is_noisy(layer: keras.layers.Layer) -> bool:
    """Says whether a layer draws noise in training that an example's copies do not share."""
    if isinstance(layer, _NOISY):
        return True
    known = keras.layers.Dropout, PairedDropout, Gate, *bayesian.LAYERS
    if not isinstance(layer, keras.layers.Layer) or isinstance(layer, known):
        return False
    if _is_stochastic_depth(layer):
        return False
    return any(_draws(inner) for inner in layer._flatten_layers())


def _draws(layer: keras.layers.Layer) -> bool:
    if getattr(layer, "dropout", None) == 0 and not getattr(layer, "recurrent_dropout", 0):
        return False  # Recurrent layers hold a generator that they do not ask.
    held = vars(layer)
    return any(held.get(name) is not None for name in ("seed_generator", "generator"))


def _activates(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, (*graph.ELEMENTWISE, keras.layers.PReLU)):
        return True
    activation = getattr(layer, "activation", keras.activations.linear)
    return activation is not keras.activations.linear


def _ends(nodes: list[Node], through: frozenset[int], through_activations: bool) -> set[int]:
    """Finds the tensors of which every use ends in a convolution or dense layer.

    Args:
        through: sums that are passed, since their other addends lose the same features.
        through_activations: pass activations; without, a tensor that an activation reads does not
            count, since the gate goes after the activation instead.
    """
    ends: dict[int, bool] = {}
    for node in reversed(nodes):
        for tensor in node.inputs:
            if node.kind in graph.LINEAR_KINDS or node.output in through:
                use = True
            elif _activates(node.layer) and node.kind != "depthwise" and not through_activations:
                use = False
            else:
                # A tensor that no layer reads is an output of the network.
                use = _passes(node, tensor) and ends.get(node.output, False)
            ends[tensor] = use and ends.get(tensor, True)
    return {tensor for tensor, use in ends.items() if use}


def _passes(node: Node, tensor: int) -> bool:
    """Says whether a zero feature of `tensor` makes the same feature behind `node` constant."""
    if node.kind == "multiply":
        # A factor that is broadcast is no feature of its own.
        return node.input_shapes[node.inputs.index(tensor)] == node.output_shape
    return node.kind in (*_THROUGH, "flatten", "concatenate")


def _origin(tensor: int, makers: dict[int, Node], stop: set[int] = frozenset()) -> int:
    """Finds the tensor, or one in `stop`, from which layers of `_THROUGH` make `tensor`."""
    while tensor not in stop and tensor in makers and makers[tensor].kind in _THROUGH:
        (tensor,) = makers[tensor].inputs
    return tensor


def _shared_gates(nodes: list[Node], scope: str) -> dict[str, str]:
    """Returns {name of a layer that writes to a residual sum: name of the gate behind it}."""
    makers = {node.output: node for node in nodes}
    sums = {node.output: node for node in nodes if node.kind == "merge"}
    # Sums that read one another, or the same tensor, belong together.
    group = {number: {number} for number in sums}
    by_origin: dict[int, int] = {}
    for number, node in sums.items():
        for tensor in node.inputs:
            other = by_origin.setdefault(_origin(tensor, makers), number)
            for a in (other, _origin(tensor, makers)):
                if a in group and group[a] is not group[number]:
                    group[number] |= group[a]
                    for member in group[number]:
                        group[member] = group[number]
    gated: dict[str, str] = {}
    for members in {id(members): members for members in group.values()}.values():
        first = min(members, key=list(sums).index)
        written = {
            tensor
            for number in members
            for tensor in sums[number].inputs
            if _origin(tensor, makers) not in members
        }
        # A tensor that has passed the gate already does not pass it again.
        written = {
            tensor
            for tensor in written
            if tensor not in makers
            or makers[tensor].kind not in _THROUGH
            or _origin(makers[tensor].inputs[0], makers, written) not in written
        }
        if not in_scope(sums[first].output_shape, scope) or any(t not in makers for t in written):
            continue
        if members | written <= _ends(nodes, frozenset(members), through_activations=True):
            name = f"{sums[first].layer.name}_gate"
            gated |= {makers[tensor].layer.name: name for tensor in written}
    return gated


def _gates_before_concatenation(nodes: list[Node], scope: str, gated: dict[str, str]) -> dict:
    """Returns {name of a layer that a concatenation reads: name of the gate behind it}.

    Args:
        gated: the same of residual sums.
    """
    makers = {node.output: node for node in nodes}
    ends = _ends(nodes, frozenset(), through_activations=True)
    written = {
        tensor: makers[tensor]
        for node in nodes
        if node.kind == "concatenate"
        for tensor in node.inputs
        if tensor in makers and makers[tensor].kind != "concatenate"
    }
    return {
        node.layer.name: f"{node.layer.name}_gate"
        for tensor, node in written.items()
        if tensor in ends
        and in_scope(node.output_shape, scope)
        and not _is_gated(tensor, gated, makers)
    }


def _is_gated(tensor: int, gated: dict[str, str], makers: dict[int, Node]) -> bool:
    """Says whether the features of a tensor have passed a gate."""
    behind = {number for number, node in makers.items() if node.layer.name in gated}
    found = _origin(tensor, makers, behind)
    while found in makers and found not in behind:
        kind, inputs = makers[found].kind, makers[found].inputs
        if kind == "concatenate":
            # The longest part is often a concatenation itself.
            *others, found = sorted(inputs, key=lambda t: t in makers and makers[t].kind == kind)
            if not all(_is_gated(other, gated, makers) for other in others):
                return False
        elif kind == "merge":
            found = inputs[0]
        else:
            return False
        found = _origin(found, makers, behind)
    return found in behind
