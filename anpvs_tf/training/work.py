"""The work of a run: its steps, and the examples that it is evaluated on."""

from anpvs_tf.data import loading
from anpvs_tf.runs.settings import Settings
from anpvs_tf.training import forecast

# After each epoch, unless the settings say otherwise.
VALIDATION_EXAMPLES = 1_000


def steps_of_epoch(settings: Settings, data: loading.Dataset) -> int:
    """Computes the number of steps of an epoch."""
    steps = len(data.train) // settings.batch_size
    return min(steps, settings.steps_per_epoch or steps)


def evaluated_splits(
    settings: Settings, data: loading.Dataset
) -> tuple[loading.Split, loading.Split]:
    """Returns the examples that are evaluated after each epoch, and in the end."""
    validation = data.validation.take(settings.eval_examples or VALIDATION_EXAMPLES)
    return validation, data.test.take(settings.eval_examples)


def work_of(settings: Settings, data: loading.Dataset) -> forecast.Work:
    """Computes the work of a run on these data."""
    validated, tested = map(len, evaluated_splits(settings, data))
    return forecast.Work(settings, steps_of_epoch(settings, data), validated, tested)
