"""How a program in bin/ starts and ends: its flags, its help, its exit code."""

import dataclasses
import errno
import math
import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from absl import flags

from anpvs_tf import __version__
from anpvs_tf.common import quiet
from anpvs_tf.common.errors import Interrupted, TrainingError, UsageError, WorkerLost, one_line
from anpvs_tf.common.progress import Progress

HELP = ("--help", "-help", "-h", "-?", "--helpfull", "--helpshort")
VERSION = "--version"
WIDTH, INDENT = 100, 30

# How a flag of each kind is defined, and what its value is called in the help.
_KINDS: dict[Any, tuple[Callable, str]] = {
    bool: (flags.DEFINE_bool, ""),
    int: (flags.DEFINE_integer, "=N"),
    float: (flags.DEFINE_float, "=X"),
    str: (flags.DEFINE_string, "=TEXT"),
    tuple: (flags.DEFINE_list, "=A,B"),
}


class _Parser(flags.ArgumentParser):
    """Makes a flag's value of its text by a function that may raise ValueError."""

    def __init__(self, parse: Callable[[str], Any]):
        super().__init__()
        self.parse = parse


@dataclasses.dataclass
class Flags:
    """The flags of a program, in the groups of its help.

    Attributes:
        values: holds the flags and, after `parse`, their values.
        groups: {title: names of its flags, in order}.
        required: names of the flags that must be given.
    """

    values: flags.FlagValues = dataclasses.field(default_factory=flags.FlagValues)
    groups: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    required: list[str] = dataclasses.field(default_factory=list)
    _shown: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    def add(
        self,
        group: str | None,
        kind: type,
        name: str,
        default: Any,
        help: str,
        *,
        required: bool = False,
        choices: tuple[str, ...] | None = None,
        repeated: bool = False,
        parse: Callable[[str], Any] | None = None,
        **limits: float,
    ) -> None:
        """Defines a flag.

        Args:
            group: title of the group that the help shows it in; None leaves it out of the help.
            kind: bool, int, float, str, tuple (values between commas), or object for text
                whose kind the program finds out; with object, `--name` alone means "true".
            choices: the texts that it may be.
            parse: makes the value of the text, or raises ValueError.
            repeated: it may be given several times; its value is a list.
            limits: of absl: lower_bound, upper_bound.
        """
        define, value = _KINDS.get(kind, (None, "=TEXT"))
        if choices is not None and repeated:
            flags.DEFINE_multi_enum(name, default, choices, help, flag_values=self.values)
        elif choices is not None:
            flags.DEFINE_enum(name, default, choices, help, flag_values=self.values)
            value = "=" + "|".join(choices) if len("|".join(choices)) < 20 else "=NAME"
        elif repeated:
            flags.DEFINE_multi_string(name, default, help, flag_values=self.values)
        elif define is None or parse is not None:
            parser = flags.ArgumentParser() if parse is None else _Parser(parse)
            flags.DEFINE(parser, name, default, help, self.values, boolean=kind is object)
        else:
            define(name, default, help, flag_values=self.values, **limits)
        self._shown[name] = f"--[no]{name}" if kind is bool else f"--{name}{value}", help
        if required:
            self.required.append(name)
        if group is not None:
            self.groups.setdefault(group, []).append(name)

    def parse(self, arguments: list[str]) -> list[str]:
        """Reads a command line; returns the arguments that are no flags.

        Raises:
            UsageError: an unknown flag, or a value of another kind.
        """
        try:
            rest = self.values(arguments)[1:]
        except flags.Error as error:
            raise UsageError(one_line(error)) from error
        for name in self._shown:
            value = self.values[name].value
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"--{name} must be a finite number; got {value}")
        return rest

    def check_required(self) -> None:
        """Raises UsageError if a required flag is missing."""
        for name in self.required:
            if not self.values[name].value:
                raise UsageError(f"--{name} is missing: {self._shown[name][1]}")

    def help(self, usage: str) -> str:
        """Makes the text of --help.

        Args:
            usage: the text that it begins with.
        """
        lines = [usage.strip()]
        for title, names in self.groups.items():
            lines += ["", title]
            for name in names:
                lines += self._entry(name)
        lines += ["  --help, --version".ljust(INDENT) + "show this help, or the version, and end"]
        return "\n".join(lines)

    def _entry(self, name: str) -> list[str]:
        flag = self.values[name]
        head, text = self._shown[name]
        if name in self.required:
            text = f"(required) {text}"
        elif flag.default not in (None, False, []) and "Default:" not in text:
            default = "on" if flag.default is True else flag.default
            text += f". Default: {','.join(default) if isinstance(default, list) else default}"
        head, space = f"  {head}", " " * INDENT
        if len(head) < INDENT:
            lines = textwrap.wrap(text, WIDTH, initial_indent=space, subsequent_indent=space)
            return [head + lines[0][len(head) :], *lines[1:]]
        return [head, *textwrap.wrap(text, WIDTH, initial_indent=space, subsequent_indent=space)]


def run(
    main: Callable[..., None],
    usage: str,
    define: Callable[[Flags], None],
    operands: bool = False,
) -> None:
    """Reads the command line and runs `main` on the values of its flags.

    A program that ends early prints one line on standard error and has the exit code of its error:
    a misuse with 2, a run that had to stop with 1, a signal with 128 and its number.

    Args:
        main: takes the values, and with `operands` the list of arguments that are no flags.
        usage: the text that --help begins with.
        define: adds the program's flags.
    """
    chosen = Flags()
    define(chosen)
    chosen.add("Others", bool, "verbose", False, "show TensorFlow's own messages too")
    code = _outcome(lambda: _run(main, usage, chosen, operands))
    if code == WorkerLost.code:
        # TensorFlow's own end would wait for the worker that is gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run(main: Callable[..., None], usage: str, chosen: Flags, operands: bool) -> None:
    given = sys.argv[1:]
    if set(given) & set(HELP):
        print(chosen.help(usage))
        return
    if VERSION in given and ("version" not in chosen.values or given == [VERSION]):
        print(f"anpvs_tf {__version__}")
        return
    rest = chosen.parse(sys.argv)
    if rest and not operands:
        raise UsageError(f"unexpected argument {rest[0]!r}; flags begin with --")
    chosen.check_required()
    if not chosen.values.verbose:
        quiet.hide_messages()
    main(chosen.values, *([rest] if operands else []))


def _outcome(work: Callable[[], None]) -> int:
    """Runs `work`; returns its exit code, and prints the cause of an early end in one line."""
    try:
        work()
        sys.stdout.flush()
    except (UsageError, TrainingError) as error:
        return _complain(error, error.code)
    except Interrupted as error:
        Progress.say(f"{error.signal}: {error}", sys.stderr)
        return error.code
    except BrokenPipeError:
        # The reader has gone: `bin/train.py --help | head`. The rest of the output goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # TensorFlow, HDF5 and Python each have an error of their own for a full disk.
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        full = f"the disk is full: {one_line(error)}; make room and give the same command"
        return _complain(full, 1)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command resumes the work or begins it again", 130)
    return 0


def _complain(error: Exception | str, code: int) -> int:
    # One line, whatever names are in it.
    Progress.say(f"error: {error}".replace("\n", "\\n"), sys.stderr)
    return code
