"""Says once, after the first minute, when a run will end."""

import datetime
import time

from anpvs_tf.common.progress import duration
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.runs.settings import Settings

AFTER_SECONDS = 60.0


def step_work(settings: Settings) -> float:
    """The work of a training step, in forward and backward passes over a batch."""
    if not METHODS[settings.method].adversarial:
        return 1.0
    # The attack's steps, then a pass over clean and attacked images.
    return 2.0 + (1 if settings.train_attack == "n_fgsm" else settings.attack_steps)


def evaluation_work(settings: Settings, images: int) -> float:
    """The work of an evaluation on so many images, in the same unit."""
    return (settings.eval_attack_steps + 1) * images / settings.batch_size


def run_work(settings: Settings, steps: int, validated: int, tested: int) -> float:
    """The work of a whole run of `steps` steps an epoch, in the same unit."""
    epoch = steps * step_work(settings) + evaluation_work(settings, validated)
    return settings.epochs * epoch + evaluation_work(settings, tested)


class Forecast:
    """Measures the work of the first minute and says what the rest will take.

    Args:
        work: of the whole run and of what is trained after it.
        done: of it, when this process began.
    """

    def __init__(self, work: float, done: float):
        self.work = work
        self.first = done
        self.started: float | None = None
        self.said = False

    def update(self, done: float, now: float | None = None) -> str | None:
        """The sentence, once a minute has passed since the first call; None before and after.

        Args:
            done: work that is done.
            now: seconds, of any monotonic clock.
        """
        now = time.monotonic() if now is None else now
        if self.started is None:
            # The first step is not typical: it compiles.
            self.started, self.first = now, done
        spent = now - self.started
        if self.said or spent < AFTER_SECONDS or done <= self.first:
            return None
        self.said = True
        left = spent * (self.work - done) / (done - self.first)
        end = datetime.datetime.now() + datetime.timedelta(seconds=left)
        return (
            f"about {duration(left)} to go, until {end:%a %H:%M} (estimated from the first minute)"
        )
