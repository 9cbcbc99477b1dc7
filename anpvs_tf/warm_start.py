"""Where training starts from: nothing, a standard run, or a run that the user names."""

import keras

from anpvs_tf import runs
from anpvs_tf.errors import UsageError
from anpvs_tf.methods import METHODS
from anpvs_tf.runs import RunDirectory
from anpvs_tf.settings import Settings, resolve

# What decides the weights of a standard network.
_DECISIVE = (
    "network",
    "dataset",
    "seed",
    "epochs",
    "batch_size",
    "learning_rate",
    "decay",
    "decay_at",
    "weight_decay",
    "precision",
    "train_examples",
    "steps_per_epoch",
)


def standard_settings(settings: Settings) -> Settings:
    """The settings of the standard network that a run starts from.

    What a standard network does not use takes its default, so that runs that
    differ only there share one base.
    """
    own = {name: getattr(settings, name) for name in (*_DECISIVE, "eval_examples")}
    return resolve(own | {"method": "standard", "epochs": settings.base_epochs})


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
        standard = standard_settings(settings)
        base = RunDirectory(run.path.parent / runs.default_name(standard))
        if not base.config_path.exists():
            base.check(standard)
        else:
            held = base.settings()
            wanted = {"method": "standard"} | {n: getattr(standard, n) for n in _DECISIVE}
            hint = f"use it as it is with --base_run={base.path}, or choose a --run_dir elsewhere"
    else:
        return None
    if base.path.resolve() == run.path.resolve():
        raise UsageError(f"--run_dir={run.path} is where the base run goes; choose another")
    if base.config_path.exists():
        for name, value in wanted.items():
            if getattr(held, name) != value:
                raise UsageError(
                    f"base run {base.path} has {name}={getattr(held, name)}, this run asks for "
                    f"{name}={value}; {hint}"
                )
    return base


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies the weights of every layer of `target` that `source` has too, by name."""
    names = {layer.name for layer in source.layers}
    for layer in target.layers:
        if layer.name in names and layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())
