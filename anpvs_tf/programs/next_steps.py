"""The commands that a program prints at its end."""

import pathlib
import shlex
import sys


def text(run: str, *programs: str) -> str:
    """Returns the next commands for a finished run, in the way the user called this program.

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
    """Returns the call of another program, in the way the user called this one."""
    path = pathlib.PurePath(sys.argv[0])
    if path.name.startswith("anpvs-"):
        return [f"anpvs-{program}"]
    return ["python", str(path.with_name(f"{program}.py"))]
