"""How a program ends early: one line without a traceback, and an exit code."""

import signal


class UsageError(ValueError):
    """A setting or an input that cannot be used; the message says what to do instead."""

    code = 2


class InUse(UsageError):
    """Another process works in a directory."""


class TrainingError(RuntimeError):
    """A run that had to stop; the message names the step, the cause and what is kept."""

    code = 1


class LockLost(TrainingError):
    """Another process has taken over the directory that this one worked in."""


class WorkerLost(TrainingError):
    """Another worker is gone. The same command, started on all workers, resumes the run."""

    # Kubeflow starts a container again if it ends with a code from 128 on; 138 is its own advice.
    code = 138


class Interrupted(RuntimeError):
    """A signal asked for the end; the message says what is kept."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.code = 128 + number
        self.signal = signal.Signals(number).name


def one_line(error: Exception) -> str:
    """Returns the message of an error, or its kind if it has none, in at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    # TensorFlow begins with where it was and ends with what happened.
    return text if len(text) <= 200 else f"{text[:60]}...{text[-137:]}"
