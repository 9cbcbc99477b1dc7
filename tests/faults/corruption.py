"""Damages each file of a run in turn and goes on; prints what comes of it.

    python -m tests.faults.corruption

An outcome is an error in one line, or the result of the undamaged run; anything else fails.
As root, the program becomes `nobody`, whom permissions bind.
"""

import contextlib
import io
import os
import pathlib
import pwd
import shutil
import tempfile
from collections.abc import Callable

from anpvs_tf.common.errors import TrainingError, UsageError
from anpvs_tf.runs import resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.training import trainer
from tests.faults.kill import differences

TINY = {
    "dataset": "digits",
    "method": "standard",
    "epochs": 3,
    "steps_per_epoch": 2,
    "eval_examples": 10,
    "eval_attack_steps": 1,
}


def flip(path: pathlib.Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a bit flipped": flip,
    "deleted": lambda path: path.unlink(),
    "empty": lambda path: os.truncate(path, 0),
    "unreadable": lambda path: path.chmod(0),
}


def make(directory: pathlib.Path) -> tuple[RunDirectory, RunDirectory]:
    """A run that was stopped after its second epoch, and the same run finished."""
    chosen = resolution.resolve(TINY)
    finished, stopped = (RunDirectory(directory / name / "run") for name in ("finished", "stopped"))
    trainer.train(chosen, finished)
    end_epoch = trainer.Position.end_epoch

    def interrupted(self, *arguments):
        if self.epoch == 2:
            raise KeyboardInterrupt
        end_epoch(self, *arguments)

    trainer.Position.end_epoch = interrupted
    try:
        trainer.train(chosen, stopped)
    except KeyboardInterrupt:
        pass
    finally:
        trainer.Position.end_epoch = end_epoch
    return stopped, finished


def outcome(run: RunDirectory, finished: RunDirectory) -> str:
    """What going on with a damaged run comes to: "error: …", or "goes on" with warnings.

    Raises:
        AssertionError: the result is another than it should be.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            trainer.train(run.settings(), run)
            open_run(run.path).network()
    except (UsageError, TrainingError) as error:
        assert "\n" not in str(error)
        return f"error: {error}"
    wrong = differences(finished.path, run.path)
    assert not wrong, f"silently different: {wrong}"
    return " ".join(["the same result", *said.getvalue().splitlines()])


def files(run: RunDirectory) -> list[pathlib.Path]:
    return sorted(path.relative_to(run.path) for path in run.path.rglob("*") if path.is_file())


def damaged(run: RunDirectory, file: pathlib.Path, how: str, to: pathlib.Path) -> RunDirectory:
    """A copy of a run with a damaged file."""
    shutil.copytree(run.path, to / "run")
    DAMAGES[how](to / "run" / file)
    return RunDirectory(to / "run")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        home = pathlib.Path(directory)
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(home, nobody.pw_uid, nobody.pw_gid)
            os.setegid(nobody.pw_gid)
            os.seteuid(nobody.pw_uid)
        stopped, finished = make(home)
        for state, run in (("stopped", stopped), ("finished", finished)):
            for file in files(run):
                for how in DAMAGES:
                    copies = home / "copies"
                    copies.mkdir()
                    said = outcome(damaged(run, file, how, copies), finished)
                    name = "tensorboard/events" if file.parts[0] == "tensorboard" else file
                    print(
                        f"| {state} | {name} | {how} | {said} |".replace(directory, ""), flush=True
                    )
                    shutil.rmtree(copies)
        os.seteuid(os.getuid())


if __name__ == "__main__":
    main()
