"""Where training starts from: nothing, a run of the method's base, or a run that the user names."""

import dataclasses

import keras

from anpvs_tf.common.errors import UsageError
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.networks import graph
from anpvs_tf.runs import directory
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.resolution import resolve
from anpvs_tf.runs.settings import Settings, decisive


def base_settings(settings: Settings) -> Settings:
    """Makes the settings of the run that a run of these settings starts from.

    Settings that do not decide the base's weights take their defaults, so that runs that
    differ only there share one base. A base that has a base itself trains for
    `epochs`: it is the same run as if the user had asked for it.
    """
    base = METHODS[METHODS[settings.method].base]
    own = {name: getattr(settings, name) for name in (*decisive(base), "eval_examples", "stream")}
    # The network that others start from is the last one, as it was trained.
    own |= {"method": base.name, "select": "last", "weight_average": 0.0}
    if not settings.pretrained:
        own |= {"freeze_below": None}  # Its initial weights have yet to be trained.
    if base.base is None:
        own |= {"epochs": settings.base_epochs}
    # Found out once: resolving it again would take both beta and the target as asked for.
    beta = own.pop("beta", None) if own.get("target_sparsity") is not None else None
    own.pop("layer_beta", None) if beta is not None else None
    found = resolve(own)
    return found if beta is None else dataclasses.replace(found, beta=beta)


def base_run(settings: Settings, run: RunDirectory) -> RunDirectory | None:
    """Finds the run whose weights training starts from; None for a start from scratch.

    An explicit `base_run` must be finished. Without one, a method with a base uses the
    run of that method beside `run`, which may still have to be trained.

    Raises:
        UsageError: the base is not finished or does not fit, or `freeze_below` would hold
            weights that nothing has trained.
    """
    if settings.base_run is not None:
        base = RunDirectory(settings.base_run)
        _check_fits(base, base.settings(), settings)
        if not base.finished:
            raise UsageError(f"--base_run={base.path} is not finished; finish it first")
    elif not needs_base(settings):
        if settings.freeze_below is not None and not settings.pretrained:
            raise UsageError(
                f"--freeze_below={settings.freeze_below} would hold initial weights, which nothing "
                "has trained; give --base_run, or --network=FILE.keras"
            )
        return None
    else:
        wanted = base_settings(settings)
        base = RunDirectory(run.path.parent / directory.default_name(wanted))
        if not base.config_path.exists():
            base.check(wanted)
        else:
            _check_same(base, base.settings(), wanted)
    if base.path.resolve() == run.path.resolve():
        raise UsageError(f"--run_dir={run.path} is where the base run goes; choose another")
    return base


def needs_base(settings: Settings) -> bool:
    """Says whether a run of the method's base, of at least an epoch, comes first.

    Raises:
        UsageError: the method needs a trained network to start from, and the settings give none.
    """
    method = METHODS[settings.method]
    if settings.base_run is not None or method.base is None:
        return False
    if settings.base_epochs or METHODS[method.base].base is not None:
        return True
    if method.gate is None and not settings.pretrained:
        raise UsageError(
            f"--method={method.name} begins with a trained network: give --base_run, or "
            "--base_epochs of at least 1"
        )
    return False


def _check_same(base: RunDirectory, held: Settings, wanted: Settings) -> None:
    for name in ("method", *decisive(METHODS[wanted.method])):
        before, now = getattr(held, name), getattr(wanted, name)
        if before != now:
            raise UsageError(
                f"base run {base.path} has {name}={before}, this run asks for {name}={now}; use "
                f"it as it is with --base_run={base.path}, or choose a --run_dir elsewhere"
            )


def _check_fits(base: RunDirectory, held: Settings, settings: Settings) -> None:
    """Raises UsageError unless a network can start from the base that the user named."""
    method, of_base = METHODS[settings.method], METHODS[held.method]
    names = ("network", "network_version", "input_range", "width")
    if settings.network_version is not None and held.network_version == settings.network_version:
        names = names[1:]  # The same file by another name.
    wanted = {name: (getattr(held, name), getattr(settings, name)) for name in names}
    wanted["image shape"] = (held.source.image_shape, settings.source.image_shape)
    if method.frozen_gates:
        # Its mask is the base's.
        wanted["gate kind"] = (of_base.gate, method.gate)
        wanted["gate_scope"] = (held.gate_scope, settings.gate_scope)
        wanted["coupled"] = (held.coupled, settings.coupled)
    for name, (before, now) in wanted.items():
        if before != now:
            raise UsageError(
                f"base run {base.path} has {name} {before}, this run needs {now}; choose another "
                "--base_run"
            )


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies the weights of every layer of `target` that `source` has too, by name.

    A weight that only one of the two has (a posterior's width) is left alone, as is
    the classifier's head where the numbers of classes differ.
    """
    names = {layer.name for layer in source.layers}
    head = graph.logits_of(target)._keras_history.operation
    for layer in target.layers:
        if layer.name not in names:
            continue
        held = {weight.name: weight for weight in source.get_layer(layer.name).weights}
        fitting = [weight for weight in layer.weights if weight.name in held]
        if layer is head and any(w.shape != held[w.name].shape for w in fitting):
            continue
        for weight in fitting:
            weight.assign(held[weight.name])
