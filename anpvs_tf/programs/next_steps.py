"""The commands that a program ends with."""

import pathlib
import shlex
import sys


def text(run: str, *programs: str) -> str:
    """The commands that follow for a finished run, as the user called this program.

    Args:
        run: path of the run directory.
        programs: of "evaluate", "report" and "export".
    """
    exports = f"exports/{pathlib.Path(run).resolve().name}"
    about = {
        "evaluate": ("how robust it is", [f"--run_dir={run}"]),
        "report": ("tables and figures", [run, "--out=report"]),
        "export": ("a model to serve", [f"--run_dir={run}", f"--export_base={exports}"]),
    }
    lines = ["Next:"]
    for program in programs:
        what, arguments = about[program]
        lines.append(f"  {what:<18}  {shlex.join([*_called(program), *arguments])}")
    return "\n".join(lines)


def _called(program: str) -> list[str]:
    """Another program, called as this one was."""
    path = pathlib.PurePath(sys.argv[0])
    if path.name.startswith("anpvs-"):
        return [f"anpvs-{program}"]
    return ["python", str(path.with_name(f"{program}.py"))]
