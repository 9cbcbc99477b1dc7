"""The model that is evaluated: a run's network as it is deployed, or a user's own model."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.attacks import losses
from anpvs_tf.common import randomness
from anpvs_tf.common.errors import UsageError, one_line
from anpvs_tf.data.sources import Source
from anpvs_tf.evaluation.integer_network import IntegerNetwork
from anpvs_tf.networks import bayesian, final_activation, input_ranges

# A model file may hold layers of these modules: importing them registers the layers.
from anpvs_tf.pruning.frozen import FrozenNetwork, sampled_logits
from anpvs_tf.runs.finished_run import FinishedRun
from anpvs_tf.runs.settings import Settings


@dataclasses.dataclass(frozen=True)
class Subject:
    """A classifier to attack.

    Attributes:
        name: where it comes from.
        source: the data that it classifies.
        digest: of its weights, which tells it from other models.
        logits: float32 images [batch, H, W, C] in [0, 1] -> logits [batch, classes], as
            deployed: what is attacked and what decides.
        outputs: the same with the latent features, {"logits": ..., "<layer>": ...}; None
            if the model returns only logits.
        network: of a run, else None.
        settings: of the run, else None.
        posterior_draws: it is an ensemble of so many networks drawn from the run's
            posterior; None if it is not.
        simulated: a function that computes the same with gradients, where rounding has none.
        input_range: the model's values for black and white; `logits` takes 0 and 1.
        remark: what was assumed of the model, for the user.
    """

    name: str
    source: Source
    digest: str
    logits: Callable[[tf.Tensor], tf.Tensor]
    outputs: Callable[[tf.Tensor], dict[str, tf.Tensor]] | None = None
    network: keras.Model | None = None
    settings: Settings | None = None
    posterior_draws: int | None = None
    simulated: Callable[[tf.Tensor], tf.Tensor] | None = None
    input_range: tuple[float, float] = (0.0, 1.0)
    remark: str = ""

    @property
    def dataset(self) -> str:
        return self.source.name

    @property
    def classes(self) -> int:
        return self.source.classes


def of_run(run: FinishedRun, posterior_draws: int | None = None) -> Subject:
    """Makes a subject of a finished run's network; if it is Bayesian, with the posterior means.

    Args:
        posterior_draws: instead, the ensemble (the mean softmax) of so many networks
            drawn from a Bayesian run's posterior. The draws are fixed by the run's seed.

    Raises:
        UsageError: posterior draws of a run that is not Bayesian.
    """
    network = run.network()
    if posterior_draws is not None:
        return _ensemble(run, network, posterior_draws)
    frozen = FrozenNetwork(network)
    weights = frozen.fold()
    return Subject(
        run.path,
        run.settings.source,
        _digest(array.tobytes() for array in network.get_weights()),
        logits=lambda images: frozen.apply(weights, images),
        outputs=lambda images: network(images, training=False),
        network=network,
        settings=run.settings,
    )


def _ensemble(run: FinishedRun, network: keras.Model, draws: int) -> Subject:
    settings = run.settings
    if not bayesian.layers_of(network):
        raise UsageError(
            f"{run.path} was trained by {settings.method}, whose weights have no posterior; "
            "--posterior_draws needs a Bayesian run (--method=at_bnn)"
        )
    seed = randomness.seed_of(settings.seed, "posterior")
    sampled = sampled_logits(network, draws, seed)
    weights = [array.tobytes() for array in network.get_weights()]
    return Subject(
        f"{run.path} ({draws} posterior draws)",
        settings.source,
        _digest([*weights, f"{settings.seed} {draws}".encode()]),
        logits=lambda images: losses.logits_of(sampled, images),
        outputs=sampled_outputs(network, draws, seed),
        network=network,
        settings=settings,
        posterior_draws=draws,
    )


def of_litert(path: str, origin: Subject) -> Subject:
    """Makes a subject of an int8 LiteRT file.

    The file's interpreter classifies; gradients go straight through its rounding, and those of
    the run's network are added.

    Args:
        origin: of the run that the file was exported from.

    Raises:
        UsageError: the file is missing, holds another kind of network, or does not fit the run.
    """
    integers = IntegerNetwork(path, origin.logits)
    expected = (tuple(origin.source.image_shape), origin.classes)
    if (integers.image_shape, integers.classes) != expected:
        raise UsageError(
            f"--litert={path} takes images of {list(integers.image_shape)} and knows "
            f"{integers.classes} classes; the run's network takes {list(expected[0])} and knows "
            f"{expected[1]}"
        )
    return Subject(
        path,
        origin.source,
        _digest_of_files(pathlib.Path(path)),
        integers.logits,
        network=origin.network,
        settings=origin.settings,
        simulated=integers.simulate,
    )


def of_model(path: str, source: Source, input_range: tuple[float, float] | None = None) -> Subject:
    """Loads a SavedModel directory (a version of an export, say) or a Keras model file.

    A SavedModel is called by its signature `serving_default`. Its logits are the output
    "logits", or its only output.

    Args:
        source: the data that the model classifies.
        input_range: the model's values for black and white; None reads them off a layer at its
            input: 0 to 255 if it takes integers, 0 to 1 if no layer says otherwise.

    Raises:
        UsageError: the model does not exist, or it is one that does not fit the dataset.
    """
    if not pathlib.Path(path).exists():
        raise UsageError(f"--saved_model={path} does not exist")
    try:
        load = _saved_model if pathlib.Path(path).is_dir() else _keras_file
        loaded = load(path)
    except UsageError:
        raise
    except Exception as error:  # TensorFlow's and Keras's loaders raise many kinds.
        raise UsageError(f"--saved_model={path} cannot be loaded: {one_line(error)}") from error

    low, high = input_range or loaded.input_range
    remarks = [loaded.ending] if loaded.ending else []
    if loaded.seen and input_range is None:
        remarks.append(
            f"black is taken as {low:g}, white as {high:g} ({loaded.seen}); --input_range says "
            "otherwise"
        )
    remark = f"{path}: {'; '.join(remarks)}" if remarks else ""

    def logits(images):
        if (low, high) != (0.0, 1.0):
            images = low + (high - low) * images
        found = _logits_of(loaded.call(images), path)
        # A signature's shapes may be unknown, and the rank tells whether there are draws.
        return found if tf.executing_eagerly() else tf.ensure_shape(found, [None, source.classes])

    try:
        found = logits(tf.zeros([2, *source.image_shape]))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"--saved_model={path} cannot classify images of {source.name}, "
            f"{list(source.image_shape)}: {one_line(error)}"
        ) from error
    if found.shape.as_list() != [2, source.classes]:
        raise UsageError(
            f"--saved_model={path} returns {found.shape.as_list()[1:]} values for an image; the "
            f"{source.classes} classes of {source.name} were expected"
        )
    digest = _digest_of_files(pathlib.Path(path))
    if (low, high) != (0.0, 1.0):
        digest = _digest([digest.encode(), f"{low} {high}".encode()])
    return Subject(path, source, digest, logits, input_range=(low, high), remark=remark)


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _digest_of_files(path: pathlib.Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file()) or [path]
    return _digest(file.read_bytes() for file in files)


class Loaded(NamedTuple):
    """A model file.

    call: images -> its outputs; input_range: its black and white; seen: how that is known;
    ending: says which activation was removed at its end.
    """

    call: Callable[[tf.Tensor], Any]
    input_range: tuple[float, float] = (0.0, 1.0)
    seen: str = ""
    ending: str = ""


def _saved_model(path: str) -> Loaded:
    """Loads a SavedModel, which tells nothing of its pixels but whether they are integers."""
    loaded = tf.saved_model.load(path)
    if "serving_default" not in loaded.signatures:
        raise UsageError(f"--saved_model={path} has no signature serving_default")
    signature = loaded.signatures["serving_default"]
    ((name, spec),) = signature.structured_input_signature[1].items()

    def call(images):
        return signature(**{name: images})

    def call_integers(images):
        @tf.custom_gradient
        def without_gradient(images):
            def gradient(*_, variables=None):
                raise LookupError("it takes integers; give a Keras model file (.keras) of it")

            return call(tf.cast(tf.round(images), spec.dtype)), gradient

        return without_gradient(images)

    call.keeps = loaded  # A signature does not keep its variables alive.
    if spec.dtype.is_floating:
        return Loaded(call)
    return Loaded(call_integers, (0.0, 255.0), f"it takes {spec.dtype.name}")


def _keras_file(path: str) -> Loaded:
    """Loads a Keras model."""
    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    model, removed = final_activation.without(model)
    found, seen = input_ranges.of_keras(model)
    ending = f"it is attacked before its {removed}" if removed else ""
    if not input_ranges.takes_integers(model):
        return Loaded(lambda images: model(images, training=False), found, seen, ending)
    inner = input_ranges.with_float_input(model)

    def call(images):
        # The model sees whole numbers; the gradient goes straight through the rounding.
        whole = images + tf.stop_gradient(tf.round(images) - images)
        return inner(whole, training=False)

    return Loaded(call, found, seen, ending)


def _logits_of(output: Any, path: str) -> tf.Tensor:
    if isinstance(output, (list, tuple)):
        if len(output) != 1:
            raise UsageError(
                f"--saved_model={path} returns {len(output)} outputs; one, or a dict with "
                "'logits', was expected"
            )
        (output,) = output
    if isinstance(output, dict):
        if "logits" not in output and len(output) > 1:
            raise UsageError(
                f"--saved_model={path} returns {', '.join(output)}; an output 'logits' was expected"
            )
        output = output["logits"] if "logits" in output else next(iter(output.values()))
    return tf.cast(output, tf.float32)


def check_logits(subject: Subject, logits: np.ndarray) -> None:
    """Raises UsageError for outputs that cannot be logits: not finite, or all from 0 to 1."""
    if not np.all(np.isfinite(logits)):
        raise UsageError(f"{subject.name} returns logits that are not finite")
    # Logits that are all the same pass: a dead network returns them.
    if len(logits) and 0 <= logits.min() < logits.max() <= 1:
        raise UsageError(
            f"{subject.name} returns probabilities, values from 0 to 1; attacks need logits, from "
            "before the softmax or sigmoid (gradients through these vanish and would make it look "
            "robust)"
        )


def sampled_outputs(
    network: keras.Model, draws: int, seed: tf.Tensor
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Makes the ensemble of the networks of `sampled_logits`, with latent features.

    Args: as of `sampled_logits`.

    Returns:
        images -> {"logits": log of the mean softmax, [batch, classes]; "<layer>": the
        features of all draws side by side, [batch, ..., draws * features], so that their
        mean movement is the mean over the draws}.
    """
    drawn = [bayesian.draw(network, randomness.fold(seed, i)) for i in range(draws)]

    def outputs(images):
        found = []
        for weights in drawn:
            with keras.StatelessScope(weights):
                found.append(network(images, training=False))
        together = {
            name: tf.concat([one[name] for one in found], axis=-1)
            for name in found[0]
            if name != "logits"
        }
        logits = tf.stack([one["logits"] for one in found])
        return {"logits": losses.logits_of(lambda _: logits, images), **together}

    return outputs
