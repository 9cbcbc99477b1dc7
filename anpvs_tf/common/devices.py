"""The devices and machines that a run is spread over, by TensorFlow's strategies.

They decide how fast a run is, not what it computes: the global batch is cut into equal
parts in order, noise goes by the place in the global batch, and losses are means over
it. So a run may resume on other devices than it began with.
"""

import contextlib
import dataclasses
import json
import os
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context as eager_context

from anpvs_tf.common.errors import UsageError, WorkerLost, one_line
from anpvs_tf.common.names import STRATEGIES

# The errors of a collective operation when the process at its other end is gone.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)

# A worker from which nothing came for so long is lost. They tell each other that they live in half
# of this time, so a cut is noticed after 15 to 30 s.
SILENT_SECONDS = 30

Terms = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Devices:
    """A strategy, and which of its workers this process is.

    Attributes:
        worker, workers: this process among those that train together.
        xla: XLA compiles the attack of training.
    """

    strategy: tf.distribute.Strategy
    worker: int = 0
    workers: int = 1
    xla: bool = False

    @property
    def is_chief(self) -> bool:
        """Whether this is the worker that writes the run directory."""
        return self.worker == 0

    @property
    def replicas(self) -> int:
        return self.strategy.num_replicas_in_sync

    def check(self, batch_size: int) -> None:
        """Raises UsageError unless a global batch can be cut into equal parts."""
        if batch_size % self.replicas:
            raise UsageError(
                f"--batch_size={batch_size} cannot be shared equally by {self.replicas} devices; "
                f"choose a multiple of {self.replicas}"
            )

    def distribute(self, batches: tf.data.Dataset, batch_size: int) -> Iterator:
        """Yields global batches, each cut for the replicas in order.

        Args:
            batches: this worker's part of each global batch.
            batch_size: of the global batch.

        Raises:
            WorkerLost: a worker is gone; workers ask each other whether there is a next batch.
        """
        if self.replicas == 1:
            yield from batches
            return
        part = batch_size // self.replicas

        def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
            local = self.replicas // context.num_input_pipelines

            def cut(*tensors):
                return tuple(tf.reshape(t, [local, part, *t.shape[1:]]) for t in tensors)

            return batches.map(cut).unbatch().prefetch(2 * local)

        with self.watched():
            yield from self.strategy.distribute_datasets_from_function(of_worker)

    def step(self, update: Callable) -> Callable[..., tuple[Terms, list[bool]]]:
        """Compiles an update of a batch for all replicas.

        Args:
            update: (images, labels) of a replica -> {name: scalar}.

        Returns:
            (distributed batch, wishes) -> the terms' means over the replicas, and for each
            wish (a bool of this worker) whether any worker has it. All workers learn of it
            after the same step, and no operation of its own is needed for that.
        """
        names = []

        def of_replica(batch, wishes):
            terms = update(batch)
            names[:] = terms
            values = [tf.cast(value, tf.float32) for value in terms.values()]
            return tf.concat([tf.stack(values), wishes], axis=0)

        @tf.function(autograph=False)
        def of_all(batch, wishes):
            values = self.strategy.run(of_replica, (batch, wishes))
            return self.strategy.reduce(tf.distribute.ReduceOp.MEAN, values, axis=None)

        def step(batch, wishes: list[bool]) -> tuple[Terms, list[bool]]:
            values = of_all(batch, tf.constant(wishes, tf.float32)).numpy().tolist()
            terms = dict(zip(names, values, strict=False))
            return terms, [value > 0 for value in values[len(names) :]]

        return step

    def scatter(self, values: list) -> tf.distribute.DistributedValues:
        """Gives each replica its own entry of `values`, which has one for every replica."""
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: values[context.replica_id_in_sync_group]
        )

    def gather(self, rows: list[np.ndarray]) -> np.ndarray:
        """Gathers the rows of all replicas in order, from a row for each replica of this worker."""
        if self.workers == 1:
            return np.stack(rows)
        first = self.worker * len(rows)
        places = dict(enumerate(rows, first))
        mine = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(places[context.replica_id_in_sync_group][None])
        )
        with self.watched():
            return self.strategy.gather(mine, axis=0).numpy()

    def of_chief(self, number: int) -> int:
        """Returns the chief's number on every worker; waits for all."""
        if self.workers == 1:
            return number
        rows = [np.array([number])] * (self.replicas // self.workers)
        return int(self.gather(rows)[0, 0])

    def all_have(self, it: bool) -> bool:
        """Returns on every worker whether all have something; waits for all."""
        if self.workers == 1:
            return it
        rows = [np.array([it], np.int32)] * (self.replicas // self.workers)
        return bool(self.gather(rows).all())

    def agree(self, settings: str) -> None:
        """Waits for all workers; raises UsageError if this one's settings are not the chief's.

        Args:
            settings: all of them, as text.
        """
        number = zlib.crc32(settings.encode())
        if self.of_chief(number) != number:
            raise UsageError(
                "this worker has other settings than the chief; start all with the same flags"
            )

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Turns the errors that a lost worker causes into WorkerLost."""
        try:
            yield
        except _LOST as error:
            if self.workers == 1:
                raise
            raise WorkerLost(
                f"another worker is gone ({one_line(error)}); start all workers again with the "
                "same command: they resume from the last checkpoint"
            ) from error


def local(xla: str = "auto") -> Devices:
    """Returns the strategy that TensorFlow has by default: one device; `xla` as of `choose`."""
    return Devices(tf.distribute.get_strategy(), xla=_compiles(xla))


def _compiles(xla: str) -> bool:
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    return xla == "on" or (xla == "auto" and on_gpu)


def choose(
    name: str = "auto",
    logical_cpus: int | None = None,
    deterministic: bool = False,
    xla: str = "auto",
) -> Devices:
    """Sets up the devices. Call it before any other use of TensorFlow.

    Args:
        name: of `STRATEGIES`. "auto" is "multi_worker" if `TF_CONFIG` is set, else
            "mirrored" with several GPUs or logical CPUs, else "default".
        deterministic: only kernels that give the same bits every time.
        logical_cpus: cut the CPU into this many devices, to try strategies without GPUs.
        xla: of `XLA`. "auto" is "on" with a GPU, else "off": its convolutions are slow on CPUs.

    Raises:
        UsageError: a strategy that the machine cannot have, or a TF_CONFIG of another form.
    """
    if name not in STRATEGIES:
        raise UsageError(f"unknown strategy {name!r}; choose one of {', '.join(STRATEGIES)}")
    if logical_cpus is not None:
        if logical_cpus < 1:
            raise UsageError(f"--logical_cpus must be at least 1; got {logical_cpus}")
        (cpu, *_) = tf.config.list_physical_devices("CPU")
        parts = [tf.config.LogicalDeviceConfiguration()] * logical_cpus
        tf.config.set_logical_device_configuration(cpu, parts)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    gpus = len(tf.config.list_physical_devices("GPU"))
    if name == "auto":
        name = "mirrored" if max(gpus, logical_cpus or 1) > 1 else "default"
        if "TF_CONFIG" in os.environ:
            name = "multi_worker"
    if name == "default":
        return local(xla)
    compiles = _compiles(xla)
    if name == "mirrored":
        if logical_cpus is not None or not gpus:
            cpus = [f"CPU:{i}" for i in range(logical_cpus or 1)]
            return Devices(tf.distribute.MirroredStrategy(cpus), xla=compiles)
        return Devices(tf.distribute.MirroredStrategy(), xla=compiles)
    worker, workers = _place()
    _notice_silence(json.loads(os.environ["TF_CONFIG"])["cluster"])
    return Devices(tf.distribute.MultiWorkerMirroredStrategy(), worker, workers, compiles)


def _notice_silence(cluster: dict[str, list[str]]) -> None:
    """Sets how soon workers notice that one is silent, which a cut network leaves without an error.

    With TensorFlow's own value it took workers 51 and 85 s, and strategies have no argument for it;
    they leave the service as it is if it was configured before.
    """
    sizes = {kind: len(cluster[kind]) for kind in ("chief", "worker") if cluster.get(kind)}
    job = eager_context.coordination_config_pb2.CoordinatedJob
    eager_context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=f"/job:{next(iter(sizes))}/replica:0/task:0",
        heartbeat_timeout_in_ms=1000 * SILENT_SECONDS,
        coordinated_jobs=[job(name=kind, num_tasks=size) for kind, size in sizes.items()],
    )


def _place() -> tuple[int, int]:
    """Reads this worker's number and the number of workers from TF_CONFIG; the chief is 0."""
    wanted = 'TF_CONFIG must be like {"cluster": {"worker": ["host:port", ...]}, "task": {"type": \
"worker", "index": 0}}'
    try:
        config = json.loads(os.environ["TF_CONFIG"])
        cluster, task = config["cluster"], config["task"]
        chiefs, workers = (len(cluster.get(kind, [])) for kind in ("chief", "worker"))
        number = {"chief": 0, "worker": chiefs}[task["type"]] + int(task["index"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{wanted}; got {os.environ.get('TF_CONFIG')!r}") from error
    if set(cluster) - {"chief", "worker"} or not 0 <= number < chiefs + workers:
        raise UsageError(f"{wanted}; got {os.environ['TF_CONFIG']!r}")
    return number, chiefs + workers
