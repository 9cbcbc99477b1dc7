"""Memory and open files of a digits run over its epochs.

    python -m tests.faults.memory --epochs=50

Prints both after epochs 5, 10, … and how often the step has been compiled, and compares the
last with epoch 5. TensorFlow keeps what it has compiled as long as the process lives, and with
gates the step is compiled anew when the network that crafts has become smaller.
"""

import argparse
import os
import pathlib
import tempfile

from anpvs_tf.common.devices import Devices
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.runs import resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.training import trainer


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--method", default="anpvs")
    given = parser.parse_args()
    seen, compiled = {}, []
    save, step = trainer.Checkpoints.save, Devices.step

    def watched(self):
        save(self)
        if self.position.settings["method"] == given.method and self.position.epoch % 5 == 0:
            figures = resident(), len(os.listdir("/proc/self/fd")), len(compiled)
            seen[self.position.epoch] = figures
            print(
                "epoch {}: {:.1f} MiB, {} open files, compiled {} times".format(
                    self.position.epoch, *figures
                ),
                flush=True,
            )

    def counted(self, update):
        compiled.append(update)
        return step(self, update)

    trainer.Checkpoints.save, Devices.step = watched, counted
    flags = {"method": given.method, "epochs": given.epochs}
    if METHODS[given.method].base is not None:
        flags["base_epochs"] = 1
    chosen = resolution.resolve(flags)
    with tempfile.TemporaryDirectory() as directory:
        trainer.train(chosen, RunDirectory(pathlib.Path(directory) / "run"))
    (first, handles, before), (last, handles_after, after) = seen[5], seen[given.epochs]
    print(
        f"memory {last / first - 1:+.2%}, open files {handles_after - handles:+d}, "
        f"compiled {after - before} times in between"
    )


if __name__ == "__main__":
    main()
