"""The time that a sweep will take, by the trials that ended while this process looked."""

import time

from keras_tuner.engine.trial import TrialStatus

from anpvs_tf.common.progress import ahead
from anpvs_tf.tuning import oracles

_OPEN = (TrialStatus.RUNNING, TrialStatus.IDLE)


class Remaining:
    """Counts the trials of an oracle and times them.

    Args:
        oracle: knows the trials that ended before, but not the time that they took.
    """

    def __init__(self, oracle: oracles.Lasting):
        self.oracle = oracle
        self.began = time.monotonic()
        self.before = sum(map(oracles.work, self._ended()))

    def _ended(self) -> list:
        return [trial for trial in list(self.oracle.trials.values()) if trial.status not in _OPEN]

    def ended(self) -> int:
        """Counts the trials that ended, successful or not."""
        return len(self._ended())

    def text(self) -> str:
        """Says "3 of 20 trials", and the time that the others will take, once one ended."""
        planned, ended = self.oracle.planned(), self._ended()
        done = sum(map(oracles.work, ended))
        text = f"{len(ended)} of {len(planned)} trials"
        left, timed = sum(planned) - done, done - self.before
        if left <= 0 or timed <= 0:
            return text
        return f"{text}, {ahead((time.monotonic() - self.began) / timed * left)}"
