"""Memory and open files of a digits run over its epochs.

    python -m tests.faults.memory --epochs=50

Prints both after epochs 5, 10, … and compares the last with epoch 5.
"""

import argparse
import os
import pathlib
import tempfile

from anpvs_tf import loop, resolving
from anpvs_tf.runs import RunDirectory


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--method", default="anpvs")
    given = parser.parse_args()
    seen = {}
    save = loop.Checkpoints.save

    def watched(self):
        save(self)
        if self.position.settings["method"] == given.method and self.position.epoch % 5 == 0:
            seen[self.position.epoch] = resident(), len(os.listdir("/proc/self/fd"))
            memory, handles = seen[self.position.epoch]
            print(
                f"epoch {self.position.epoch}: {memory:.1f} MiB, {handles} open files", flush=True
            )

    loop.Checkpoints.save = watched
    chosen = resolving.resolve({"method": given.method, "epochs": given.epochs, "base_epochs": 1})
    with tempfile.TemporaryDirectory() as directory:
        loop.train(chosen, RunDirectory(pathlib.Path(directory) / "run"))
    (first, handles), (last, handles_after) = seen[5], seen[given.epochs]
    print(f"memory {last / first - 1:+.2%}, open files {handles_after - handles:+d}")


if __name__ == "__main__":
    main()
