"""The errors that a program reports in one line, without a traceback."""


class UsageError(ValueError):
    """A setting or an input that cannot be used; the message says what to do instead."""


class TrainingError(RuntimeError):
    """A run that had to stop; the message names the step, the cause and what is kept."""
