"""The parts that benchmarks share: variants that take turns, ratios, Markdown rows, the machine.

Variants take turns, a call each (A B C A B C ...), so that whatever else the machine does hits
all alike. Seconds are medians; ratios are medians over the rounds of the ratio within a round.
"""

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable

from anpvs_tf.common.errors import UsageError


@dataclasses.dataclass
class Variant:
    """Something to time, and how it is named in the table.

    `run` returns once the work is done. `multiplications` counts its multiply-adds in
    convolutions and dense layers, where that is of interest.
    """

    cells: tuple[str, ...]
    run: Callable[[], object]
    multiplications: int = 0


def measure(
    title: str, variants: list[Variant], repeats: int, twice: bool = False
) -> list[tuple[Variant, list[float]]]:
    """Seconds of each variant in each round; the first call, which compiles, is not timed.

    With `twice`, each turn is two calls of which the second is timed: the threads of another
    runtime, which wait busily for its next call, have gone to sleep.
    """
    for number, variant in enumerate(variants, start=1):
        progress(f"{title}: compiling {number}/{len(variants)} {_name(variant)}")
        variant.run()
    taken = [[] for _ in variants]
    for repeat in range(1, repeats + 1):
        for variant, times in zip(variants, taken, strict=True):
            if twice:
                variant.run()
            started = time.perf_counter()
            variant.run()
            times.append(time.perf_counter() - started)
            progress(f"{title}: round {repeat}/{repeats} {_name(variant)} {times[-1]:.3f} s")
    return list(zip(variants, taken, strict=True))


def _name(variant: Variant) -> str:
    return " ".join(filter(None, variant.cells))


def check_choices(flag: str, chosen: list[str], choices: Iterable[str]) -> None:
    """Raises UsageError for a choice that there is not."""
    for name in chosen:
        if name not in choices:
            raise UsageError(f"unknown --{flag} {name!r}; choose of {', '.join(choices)}")


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def ratio(numerator: list[float], denominator: list[float]) -> str:
    pairs = zip(numerator, denominator, strict=True)
    return f"{statistics.median(n / d for n, d in pairs):.2f}"


def seconds(times: list[float]) -> str:
    return f"{statistics.median(times):.3f} ({min(times):.3f}-{max(times):.3f})"


def print_rows(rows: list[tuple[str, ...]]) -> None:
    """Prints rows of the Markdown table as soon as they are known."""
    for cells in rows:
        print(f"| {' | '.join(cells)} |", flush=True)


def environment(module: str) -> str:
    """One line: processor, cores, load, versions, date, command."""
    packages = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("tensorflow", "keras", "torch")
        if importlib.util.find_spec(name)
    ]
    return "; ".join(
        [
            f"{processor()}, {os.cpu_count()} cores",
            f"load {os.getloadavg()[0]:.1f} at the start",
            f"Python {platform.python_version()}, {', '.join(packages)}",
            datetime.date.today().isoformat(),
            f"`python -m benchmarks.{module} {' '.join(sys.argv[1:])}`".replace(" `", "`"),
        ]
    )


def processor() -> str:
    """The processor's model name."""
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            names = [line.partition(":")[2] for line in cpuinfo if line.startswith("model name")]
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor()
