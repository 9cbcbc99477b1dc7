"""Says once, after the first minute, when a run will end."""

import time

from anpvs_tf.common.progress import ahead
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.runs.settings import Settings

AFTER_SECONDS = 60.0


class Work:
    """The work of a run, in forward and backward passes over a batch of clean images.

    Args:
        settings: of the run.
        steps: of an epoch.
        validated, tested: images that are attacked after an epoch, and in the end.
    """

    def __init__(self, settings: Settings, steps: int, validated: int, tested: int):
        self.of_step = 1.0
        if METHODS[settings.method].adversarial:
            # The attack's steps, then a pass over clean and attacked images.
            attacks = 1 if settings.train_attack == "n_fgsm" else settings.attack_steps
            self.of_step = 2.0 + attacks
        of_image = (settings.eval_attack_steps + 1) / settings.batch_size
        self.of_epoch = steps * self.of_step + validated * of_image
        self.whole = settings.epochs * self.of_epoch + tested * of_image

    def done(self, epochs: int, steps: int) -> float:
        """Computes the work of `epochs` epochs and of `steps` steps of the next."""
        return epochs * self.of_epoch + steps * self.of_step


class Forecast:
    """Measures the work of the first minute and says how long the rest will take.

    Args:
        work: in all, with that of the run that is trained after this one.
    """

    def __init__(self, work: float):
        self.work = work
        self.began: tuple[float, float] | None = None
        self.said = False

    def update(self, done: float, now: float | None = None) -> str | None:
        """Says once, a minute after the first call, how long the rest takes; None before and after.

        Args:
            done: work that is done.
            now: seconds, of any monotonic clock; None for `time.monotonic`.
        """
        now = time.monotonic() if now is None else now
        # The first step is not typical: it compiles.
        self.began = self.began or (now, done)
        spent, progress = now - self.began[0], done - self.began[1]
        if self.said or spent < AFTER_SECONDS or progress <= 0:
            return None
        self.said = True
        return f"{ahead(spent * (self.work - done) / progress)} (by the first minute)"
