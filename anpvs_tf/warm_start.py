"""Where training starts from: nothing, a standard run, or a run that the user names."""

import dataclasses

import keras

from anpvs_tf import runs
from anpvs_tf.errors import UsageError
from anpvs_tf.methods import METHODS
from anpvs_tf.runs import RunDirectory
from anpvs_tf.settings import Settings


def standard_settings(settings: Settings) -> Settings:
    """The settings of the standard network that a run starts from."""
    return dataclasses.replace(
        settings, method="standard", epochs=settings.base_epochs, base_run=None
    )


def base_run(settings: Settings, run: RunDirectory) -> RunDirectory | None:
    """The run whose weights training starts from; None for a start from scratch.

    An explicit `base_run` must be finished. Without one, a method with a warm
    start uses the standard run beside `run`, which may still have to be trained.

    Raises:
        UsageError: a base that is not finished or does not fit.
    """
    if settings.base_run is not None:
        base = RunDirectory(settings.base_run)
        held = base.settings()
        if not base.finished:
            raise UsageError(f"--base_run={base.path} is not finished; finish it first")
        wanted = {"network": settings.network, "dataset": settings.dataset}
        hint = "choose a run of the same network and dataset"
    elif METHODS[settings.method].warm_start:
        base = RunDirectory(run.path.parent / runs.default_name(standard_settings(settings)))
        if not base.config_path.exists():
            base.check(standard_settings(settings))
            return base
        held = base.settings()
        if not base.finished:
            base.check(standard_settings(settings))
        # Any finished standard run of this network, seed and data will do: its own
        # config.json says how it was trained.
        wanted = {
            "method": "standard",
            **{n: getattr(settings, n) for n in ("network", "dataset", "seed", "train_examples")},
        }
        hint = "name another with --base_run, or choose a --run_dir beside another one"
    else:
        return None
    for name, value in wanted.items():
        if getattr(held, name) != value:
            raise UsageError(
                f"base run {base.path} has {name}={getattr(held, name)}, this run "
                f"{name}={value}; {hint}"
            )
    return base


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies the weights of every layer of `target` that `source` has too, by name."""
    names = {layer.name for layer in source.layers}
    for layer in target.layers:
        if layer.name in names and layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())
