"""How much of a network is left: by the published formulas, and as measured.

The formulas count the frozen network (`compact.freeze`), in which batch
normalisation, gates and input normalisation are part of the kernels; the
*original* is the same network frozen without pruning.
"""

import contextlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.networks import graph
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.networks.graph import (
    DEPTHWISE,
    ELEMENTWISE,
    GLOBAL_POOLING,
    LINEAR,
    POOLING,
    TRANSPOSED,
)
from anpvs_tf.pruning import live_channels
from anpvs_tf.pruning.compact import Affine, freeze

layers = keras.layers


def active_features(network: keras.Model) -> dict[str, list[int]]:
    """Counts the features, {layer: [active, total]}, of every gate.

    Without gates, it counts those of every hidden convolution and dense layer, which could be
    pruned. A feature is active if its gate is open and it does not vanish by zero weights.
    """
    nodes = graph.nodes_of(network, graph.logits_of(network))
    image = network.inputs[0]
    known = live_channels.analyse(
        nodes, id(image), image.shape, {}, support=live_channels.nonzero(nodes)
    )
    masks = {gate.name: np.asarray(gate.mean_mask()) > 0 for gate in gates_of(network)}
    names = masks or {node.layer.name for node in graph.hidden(nodes)}
    active: dict[str, np.ndarray] = {}
    for node in nodes:
        if (name := node.layer.name) in names:
            # A gate that several layers share is active where one of them needs it.
            needed = known[node.output].needed & masks.get(name, True)
            active[name] = active.get(name, False) | needed
    return {
        name.removesuffix("_gate"): [int(np.count_nonzero(left)), left.size]
        for name, left in active.items()
    }


def nonzero_weights(network: keras.Model) -> dict[str, list[int]]:
    """Counts the weights in each convolution's and dense layer's kernel.

    Returns:
        {layer: [not zero, total]}.
    """
    counts = {}
    for layer in network.layers:
        if isinstance(layer, LINEAR + DEPTHWISE + TRANSPOSED):
            kernel = np.asarray(layer.kernel)
            counts[layer.name] = [int(np.count_nonzero(kernel)), kernel.size]
    return counts


def sparsity(counts: dict[str, list[int]]) -> float:
    """Returns the share of the counted units that is pruned, in [0, 1]; 0 if there are none.

    Args:
        counts: `active_features` or `nonzero_weights` of a network.
    """
    total = sum(size for _, size in counts.values())
    return 1.0 - sum(active for active, _ in counts.values()) / total if total else 0.0


def removed_weights(network: keras.Model) -> float:
    """Computes the share of the kernels' weights that the deployed network does not have.

    They computed or read features that are pruned.

    Returns:
        The share of the weights of the whole network, in [0, 1].

    Raises:
        UsageError: the network cannot be frozen.
    """
    whole, left = (
        sum(size for _, size in nonzero_weights(one).values()) for one in (network, freeze(network))
    )
    return 1.0 - left / whole


# ---- By formula ----


def flops(frozen: keras.Model) -> int:
    """Counts the floating-point operations of one image, by the published convention.

    An output value of a convolution or dense layer with n inputs costs n
    multiplications, n - 1 additions and one for the bias: 2n. (Batch
    normalisation is part of it.) An activation costs 1 a value, a pooling 1 for
    each value in its window, an addition of k tensors k - 1 a value. Copies
    (padding, flatten, concatenation, gathers) and a softmax are free.

    Gives the authors' totals for the unpruned LeNet-5-Caffe, 4,615,940, and for
    VGG-16 the authors' total less the number of classes (627,329,546 - 10 and
    627,421,796 - 100): for VGG-16 alone they count an activation of the logits.

    Args:
        frozen: a network from `compact.freeze`.
    """
    return sum(_layer_flops(layer) for layer in frozen.layers)


def _layer_flops(layer: layers.Layer) -> int:
    for types, count in _FLOPS.items():
        if isinstance(layer, types):
            return count(layer)
    return 0


def _of_kernel(kernel, values: int) -> int:
    return 2 * values * int(np.prod(kernel.shape[:-1]))


def _of_depthwise(layer: layers.DepthwiseConv2D) -> int:
    taps = 2 * int(np.prod(layer.kernel_size))
    return _values(layer.output) * (taps + (layer.activation is not keras.activations.linear))


def _of_separable(layer: layers.SeparableConv2D) -> int:
    places = int(np.prod(layer.output.shape[1:-1]))
    weights = sum(int(np.prod(w.shape)) for w in (layer.depthwise_kernel, layer.pointwise_kernel))
    return 2 * places * weights


def _of_affine(layer: Affine) -> int:
    # A shift that completes a convolution is its bias, which is counted above.
    return 2 * _values(layer.output) if layer.scale_shape is not None else 0


def _of_joining(layer: layers.Layer) -> int:
    count = len(layer.input) if isinstance(layer.input, list) else 1
    return _values(layer.output) * (count - 1)


_FLOPS: dict[tuple[type, ...], Callable[[layers.Layer], int]] = {
    LINEAR: lambda layer: _of_kernel(layer.kernel, _values(layer.output)),
    TRANSPOSED: lambda layer: _of_kernel(layer.kernel, _values(layer.input)),
    DEPTHWISE: _of_depthwise,
    (layers.SeparableConv2D,): _of_separable,
    POOLING: lambda layer: _values(layer.output) * int(np.prod(layer.pool_size)),
    GLOBAL_POOLING: lambda layer: _values(layer.input),
    (*ELEMENTWISE, layers.PReLU): lambda layer: _values(layer.output),
    (layers.Add, layers.Multiply): _of_joining,
    (Affine,): _of_affine,
}


def feature_map_values(frozen: keras.Model) -> int:
    """Counts the values in the hidden feature maps of one image.

    The feature maps are the outputs of all convolutions, depthwise convolutions and
    hidden dense layers; the logits are none.

    Args:
        frozen: a network from `compact.freeze`.
    """
    made = [
        layer.output
        for layer in frozen.layers
        if isinstance(layer, LINEAR + DEPTHWISE + TRANSPOSED)
    ]
    return sum(_values(output) for output in made if output is not frozen.output)


def _values(tensor) -> int:
    return int(np.prod(tensor.shape[1:]))


def costs(compact: keras.Model, dense: keras.Model) -> dict[str, Any]:
    """Returns the costs that pruning saves, by formula.

    Args:
        compact, dense: `compact.freeze(network)` and `compact.freeze(network, prune=False)`.

    Returns:
        flops, feature_map_values, parameters: [pruned, original] each;
        feature_map_memory: share of the original, in [0, 1] ("memory" in the paper);
        flops_reduction: original / pruned ("xFLOPs" in the paper).
    """
    both = (compact, dense)
    found = {
        "flops": [flops(model) for model in both],
        "feature_map_values": [feature_map_values(model) for model in both],
        "parameters": [model.count_params() for model in both],
    }
    pruned, original = found["feature_map_values"]
    found["feature_map_memory"] = pruned / original if original else 1.0
    found["flops_reduction"] = found["flops"][1] / found["flops"][0]
    return found


def report(network: keras.Model) -> dict[str, Any]:
    """Returns the efficiency part of a result record: `costs`, and `measure` under "measured".

    Raises:
        UsageError: the network cannot be frozen.
    """
    models = {"compact": freeze(network), "dense": freeze(network, prune=False)}
    found = costs(**models)
    pruned, original = found["parameters"]
    if pruned == original:  # The same network, which is measured once.
        del models["compact"]
    measured = measure(models)
    return found | {"measured": {"compact": measured["dense"]} | measured}


# ---- As measured ----


def measure(
    models: dict[str, keras.Model], batch_sizes: tuple[int, ...] = (1, 64), repeats: int = 30
) -> dict[str, dict[str, Any]]:
    """Measures size, latency and memory of models side by side in this process.

    Args:
        models: functional float32 models by name, images -> logits, or a dict
            with "logits"; all take images of the same shape.
        repeats: timed calls of each model and batch size; the models take turns.

    Returns:
        {name: {"parameters": count, "saved_model_bytes": of the whole directory,
        "latency": {batch size: median seconds a call},
        "peak_memory": {batch size: bytes of the weights and of the most tensors
        that TensorFlow's allocator held at a time}}}
    """
    shape = next(iter(models.values())).inputs[0].shape[1:]
    rng = np.random.default_rng(0)
    images = {
        size: tf.constant(rng.uniform(size=(size, *shape)), tf.float32) for size in batch_sizes
    }
    found = {name: {"parameters": model.count_params()} for name, model in models.items()}
    functions = {name: _inference(model) for name, model in models.items()}
    for name, model in models.items():
        with tempfile.TemporaryDirectory() as directory:
            module = tf.Module()
            module.variables_held = [weight.value for weight in model.weights]
            signature = functions[name].get_concrete_function(
                tf.TensorSpec([None, *shape], tf.float32, "images")
            )
            tf.saved_model.save(module, directory, {"serving_default": signature})
            found[name]["saved_model_bytes"] = directory_bytes(directory)
            weights = sum(weight.value.numpy().nbytes for weight in model.weights)
            found[name]["peak_memory"] = {
                size: weights + _peak_tensors(directory, pixels.numpy())
                for size, pixels in images.items()
            }
    latencies = {name: {} for name in models}
    for size, pixels in images.items():
        calls = {name: lambda f=f, x=pixels: f(x).numpy() for name, f in functions.items()}
        for name, seconds in interleaved(calls, repeats).items():
            latencies[name][size] = seconds
    return {name: values | {"latency": latencies[name]} for name, values in found.items()}


def directory_bytes(path: str) -> int:
    """Sums the bytes of all files below `path`."""
    return sum(file.stat().st_size for file in pathlib.Path(path).rglob("*") if file.is_file())


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Measures the median seconds of each call.

    The calls take turns, so that a busy machine slows all alike.
    """
    for call in calls.values():
        call()
        call()
    seconds = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _inference(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    def run(images):
        output = model(images, training=False)
        return output["logits"] if isinstance(output, dict) else output

    return tf.function(run, autograph=False, reduce_retracing=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TensorFlow's warnings off the screen."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def _peak_tensors(directory: str, images: np.ndarray) -> int:
    """Measures the most bytes of tensors alive at a time while a SavedModel runs.

    They are read from the trace of TensorFlow's allocator: the process's own memory would say
    little, since freed memory stays with it.
    """
    v1 = tf.compat.v1
    trace = v1.RunMetadata()
    with v1.Session(graph=tf.Graph()) as session:
        with _quiet():  # Loading into a session is deprecated; only sessions trace allocations.
            loaded = v1.saved_model.load(session, ["serve"], directory)
        signature = loaded.signature_def["serving_default"]
        fetch = [output.name for output in signature.outputs.values()]
        feed = {signature.inputs["images"].name: images}
        session.run(fetch, feed)  # The first run also allocates memory that stays.
        options = v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE)
        session.run(fetch, feed, options=options, run_metadata=trace)
    # (time, bytes allocated; freed ones are negative)
    changes = sorted(
        (record.alloc_micros, record.alloc_bytes)
        for device in trace.step_stats.dev_stats
        for node in device.node_stats
        for used in node.memory
        for record in used.allocation_records
    )
    return int(max(np.cumsum([size for _, size in changes]), default=0))
