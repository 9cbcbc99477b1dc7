"""Trains a run on a machine with an accelerator that has JAX, but not TensorFlow.

  python -m benchmarks.accelerator export --out=DIR --dataset=mnist --method=anpvs --recipe=short
  python benchmarks/accelerator_run.py DIR --seconds=300 --out=DIR/trained       (over there)
  python -m benchmarks.accelerator import DIR --trained=DIR/trained --run_dir=RUN

`export` takes the flags of bin/train.py and writes the whole training step (augmentation,
crafting, update) as StableHLO, the state that it starts from, and the order of the examples.
The images are written to --data, which exports of one dataset share. `import` makes a finished
run of what was trained: it is evaluated on the test set as at the end of training.

The step crafts on the whole network, however much is pruned; ADMM and --shrink, which change
the step between epochs, are refused. Needs JAX here too (extra `benchmark`).
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.attacks.settings import EVALUATION_BATCH
from anpvs_tf.common import program, randomness
from anpvs_tf.common.errors import UsageError
from anpvs_tf.common.program import Flags
from anpvs_tf.data import loading, pipelines, tfds
from anpvs_tf.evaluation.evaluator import Evaluator, Result
from anpvs_tf.methods.optimizer import is_gate_variable
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import RobustClassifier
from anpvs_tf.networks.names import is_file
from anpvs_tf.programs import train as train_program
from anpvs_tf.runs import build, console, directory
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.runs.resolution import validated, with_precision
from anpvs_tf.runs.settings import PRECISIONS, Settings
from anpvs_tf.training import collapse, history, overfitting, warm_start, work
from anpvs_tf.training.result import attack_of, final_record
from benchmarks import accelerator_run

# What MLIR calls the kinds of numbers.
NUMBERS = {
    "i1": np.bool_,
    "ui8": np.uint8,
    "i32": np.int32,
    "f16": np.float16,
    "bf16": tf.bfloat16.as_numpy_dtype,
    "f32": np.float32,
}
# JAX has no 64-bit numbers unless it is asked for them.
NARROW = {tf.int64: tf.int32, tf.float64: tf.float32}


def define(flags: Flags) -> None:
    train_program.define(flags)
    own = "Export and import"
    flags.add(own, str, "out", None, "export: the directory to write")
    images = "export: file for the images, shared. Default: OUT/data.npz"
    flags.add(own, str, "data", None, images)
    flags.add(own, bool, "of_base", False, "export: the run that this one would start from")
    flags.add(own, str, "trained", None, "import: --out of the run. Default: DIR/trained")


def main(values: Any, operands: list[str]) -> None:
    if operands == ["export"]:
        if not values.out:
            raise UsageError("export needs --out=DIR, the directory to write")
        chosen = with_precision(train_program.chosen_settings(values))
        if values.of_base:
            if METHODS[chosen.method].base is None:
                raise UsageError(f"--of_base: --method={chosen.method} starts from no other run")
            chosen = warm_start.base_settings(chosen)
        run = RunDirectory(
            values.run_dir or os.path.join(train_program.RUNS, directory.default_name(chosen))
        )
        out = pathlib.Path(values.out)
        shared = pathlib.Path(values.data) if values.data else out / "data.npz"
        write_export(chosen, out, shared, run, values.data_dir, values.download)
        held = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
        print(f"{out} holds the export, {held / 2**20:.1f} MiB")
        print(f"{shared} holds the images, {shared.stat().st_size / 2**20:.1f} MiB")
    elif len(operands) == 2 and operands[0] == "import":
        if not values.run_dir:
            raise UsageError("import needs --run_dir=RUN, the run to write")
        exported = pathlib.Path(operands[1])
        trained = pathlib.Path(values.trained) if values.trained else exported / "trained"
        run = RunDirectory(values.run_dir)
        read_trained(exported, trained, run, values.data_dir, values.overwrite)
        print(f"Results are in {run.path}")
    else:
        raise UsageError(f"expected export, or import DIR; got {' '.join(operands) or 'nothing'}")


# ---- What is trained ----


def classifier_of(
    settings: Settings, train_examples: int, steps: int, base: RunDirectory | None = None
) -> RobustClassifier:
    """A classifier at the beginning of its training, as the trainer makes it."""
    network = build.build_network(settings, PRECISIONS[settings.precision])
    if base is not None:
        warm_start.copy_weights(open_run(base.path).network(), network)
    objective = build.objective_of(settings, train_examples, steps)
    classifier = RobustClassifier(network, METHODS[settings.method], objective, settings.seed)
    optimizer = build.make_optimizer(settings, settings.epochs * steps)
    classifier.compile(optimizer=optimizer, jit_compile=False)
    optimizer.build(network.trainable_variables)
    return classifier


def state_of(classifier: RobustClassifier) -> dict[str, tf.Variable]:
    """All that a step reads or writes, by name."""
    found = {}
    for owner in (classifier.network, classifier.optimizer):
        kind = "network" if owner is classifier.network else "optimizer"
        for variable in owner.variables:
            found[f"{kind}/{len(found)}/{variable.path}"] = _handle(variable)
    return found | {f"method/{name}": held for name, held in classifier.state().items()}


def places_of_deployed(classifier: RobustClassifier) -> list[int]:
    """The place in the state of each weight of the network as it is deployed."""
    places = {id(held): place for place, held in enumerate(state_of(classifier).values())}
    return [places[id(_handle(held))] for held in classifier.deployed_variables()]


def step_function(
    classifier: RobustClassifier, settings: Settings, image_shape: tuple[int, int, int]
) -> tuple[tf.types.experimental.ConcreteFunction, list[str]]:
    """The training step as a pure function, and the names of the loss terms that it returns.

    Returns:
        (uint8 images, int32 labels, *state) -> [*terms, *new state], the states as `state_of`
        has them, with 32 bits where they have 64.
    """
    variables = list(state_of(classifier).values())
    names = []

    def step(images, labels):
        if settings.augment:
            place = tf.cast(classifier.optimizer.iterations, tf.int32)
            seed = randomness.seed_of(settings.seed, "augment", place)
            images = pipelines.random_crop_and_flip(images, seed)
        terms = classifier.update((pipelines.to_float(images), labels))
        names[:] = terms
        after = [tf.cast(variable, _narrow(variable.dtype)) for variable in variables]
        return [tf.cast(term, tf.float32) for term in terms.values()] + after

    images = tf.TensorSpec([settings.batch_size, *image_shape], tf.uint8)
    labels = tf.TensorSpec([settings.batch_size], tf.int32)
    return pure(step, variables, images, labels), names


def validation_function(
    evaluate: Evaluator, settings: Settings, batch_size: int, image_shape: tuple[int, int, int]
) -> tf.types.experimental.ConcreteFunction:
    """(uint8 images, int32 labels, number of the batch, *weights) -> [clean hits, robust hits, V].

    V is summed over the examples, as the trainer's evaluation after each epoch has it.
    """

    def validate(images, labels, number):
        seed = randomness.seed_of(settings.seed, "evaluation", number)
        images = pipelines.to_float(images)
        clean, robust, distances, _ = evaluate.evaluate_batch(images, labels, seed)
        hits = [tf.reduce_sum(tf.cast(hit, tf.float32)) for hit in (clean, robust)]
        return [*hits, tf.add_n(list(distances.values())) / len(distances)]

    images = tf.TensorSpec([batch_size, *image_shape], tf.uint8)
    labels = tf.TensorSpec([batch_size], tf.int32)
    variables = [_handle(weight) for weight in evaluate.network.weights]
    return pure(validate, variables, images, labels, tf.TensorSpec([], tf.int32))


def pure(
    body: Callable[..., list[tf.Tensor]], variables: list[tf.Variable], *specs: tf.TensorSpec
) -> tf.types.experimental.ConcreteFunction:
    """`body` as a function of its arguments and of the variables' values.

    Raises:
        UsageError: it hangs on other variables too.
    """

    def function(*arguments):
        # Nothing is read before it is written.
        for variable, value in zip(variables, arguments[len(specs) :], strict=True):
            variable.assign(tf.cast(value, variable.dtype))
        return body(*arguments[: len(specs)])

    values = [tf.TensorSpec(v.shape, _narrow(v.dtype)) for v in variables]
    traced = tf.function(function, autograph=False, jit_compile=True)
    concrete = traced.get_concrete_function(*specs, *values)
    known = {id(variable.handle) for variable in variables}
    captured = [held for held in concrete.captured_inputs if held.dtype == tf.resource]
    if strange := [held for held in captured if id(held) not in known]:
        raise UsageError(
            f"the step hangs on {strange[0]}, which is no part of the state; it cannot be exported"
        )
    return concrete


def _narrow(dtype: tf.DType) -> tf.DType:
    return NARROW.get(dtype, dtype)


def _handle(variable: keras.Variable | tf.Variable) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable


def portable(function: tf.types.experimental.ConcreteFunction) -> bytes:
    """A pure function of numbers, compiled by XLA, for `jax.export.deserialize`.

    Args:
        function: from arguments to results; variables are written before they are read.
    """
    import jax
    from jax import export, tree_util
    from jax._src.export._export import _module_to_bytecode
    from jax._src.interpreters.mlir import ir_constant, make_ir_context
    from jax.extend import mlir
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import func
    from tensorflow.python.eager.polymorphic_function import compiler_ir

    content = compiler_ir.from_concrete_function(function)(stage="stablehlo_serialized")
    arguments = len(function.inputs) - len(function.captured_inputs)
    results = len(function.outputs)

    def shape(kind) -> jax.core.ShapedArray:
        tensor = ir.RankedTensorType(kind)
        return jax.core.ShapedArray(tensor.shape, NUMBERS[str(tensor.element_type)])

    with make_ir_context(), ir.Location.unknown():
        module = mlir.deserialize_portable_artifact(content)
        entry = ir.SymbolTable(module.operation)["main"]
        block = entry.regions[0].blocks[0]
        # TensorFlow appends what is captured to the arguments, and the variables that are
        # assigned to the results. A captured tensor is a constant; a captured variable is unread.
        for held, argument in zip(
            function.captured_inputs, list(block.arguments)[arguments:], strict=True
        ):
            if held.dtype != tf.resource:
                with ir.InsertionPoint.at_block_begin(block):
                    argument.replace_all_uses_with(ir_constant(held.numpy()))
            if list(argument.uses):
                raise UsageError(f"the step reads {held} before it writes it")
        (*_, end) = block.operations
        kept = list(end.operands)[:results]
        with ir.InsertionPoint(end):
            func.ReturnOp(kept)
        end.erase()
        while len(block.arguments) > arguments:
            block.erase_argument(arguments)
        taken, given = ([value.type for value in values] for values in (block.arguments, kept))
        entry.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(taken, given))
        for name in {"arg_attrs", "res_attrs"} & set(entry.attributes):
            del entry.attributes[name]
        module.operation.verify()
        taken, given = (tuple(map(shape, kinds)) for kinds in (taken, given))
        content = _module_to_bytecode(module)
    return bytes(
        export.Exported(
            fun_name="step",
            in_tree=tree_util.tree_structure((taken, {})),
            in_avals=taken,
            out_tree=tree_util.tree_structure(list(given)),
            out_avals=given,
            _has_named_shardings=True,
            _in_named_shardings=(None,) * len(taken),
            _out_named_shardings=(None,) * len(given),
            in_shardings_hlo=(None,) * len(taken),
            out_shardings_hlo=(None,) * len(given),
            nr_devices=1,
            # StableHLO without custom calls: it runs on any platform.
            platforms=("cpu",),
            disabled_safety_checks=(export.DisabledSafetyCheck.platform(),),
            ordered_effects=(),
            unordered_effects=(),
            mlir_module_serialized=content,
            calling_convention_version=export.maximum_supported_calling_convention_version,
            module_kept_var_idx=tuple(range(len(taken))),
            uses_global_constants=False,
            _get_vjp=None,
        ).serialize(vjp_order=0)
    )


# ---- Export ----


def write_export(
    settings: Settings,
    out: pathlib.Path,
    shared: pathlib.Path,
    run: RunDirectory,
    data_dir: str | None = None,
    download: bool = True,
) -> None:
    """Writes what `accelerator_run` needs to train a run.

    Args:
        out: the directory.
        shared: the file of the images; written if it is not there.
        run: where `import` will put the run; a base is looked for beside it.

    Raises:
        UsageError: the settings cannot be trained there.
    """
    check_exportable(settings)
    base = warm_start.base_run(settings, run)
    if base is not None and not base.finished:
        raise UsageError(
            f"--method={settings.method} starts from {base.path}, which is not finished: train it, "
            "or export it with --of_base and import it there, or name another with --base_run"
        )
    data = loading.load(settings.source, data_dir, download, settings.train_examples)
    if settings.batch_size > len(data.train):
        raise UsageError(
            f"--batch_size={settings.batch_size} is more than the {len(data.train)} training "
            f"examples of {settings.dataset}"
        )
    steps = work.steps_of_epoch(settings, data)
    validation, _ = work.evaluated_splits(settings, data)

    classifier = classifier_of(settings, len(data.train), steps, base)
    function, terms = step_function(classifier, settings, data.image_shape)
    state = state_of(classifier)
    out.mkdir(parents=True, exist_ok=True)
    sha = write_data(shared, data, settings, data_dir)
    (out / "step.bin").write_bytes(portable(function))
    evaluated = build.build_network(settings, "float32")
    evaluate = Evaluator(evaluated, attack_of(settings), EVALUATION_BATCH)
    batch_size = min(EVALUATION_BATCH, len(validation))
    function = validation_function(evaluate, settings, batch_size, data.image_shape)
    (out / "validate.bin").write_bytes(portable(function))
    order = write_order(shared, settings, len(data.train))
    arrays = [v.numpy().astype(_narrow(v.dtype).as_numpy_dtype) for v in state.values()]
    accelerator_run.save_arrays(out / "state.npz", arrays)
    meta = {
        "settings": dataclasses.asdict(settings),
        "base": str(base.path) if base is not None else None,
        "command": sys.argv,
        "versions": directory.versions(),
        "train_examples": len(data.train),
        "steps": steps,
        "terms": terms,
        "variables": list(state),
        "deployed": places_of_deployed(classifier),
        "gates": [i for i, w in enumerate(evaluate.network.weights) if is_gate_variable(w)],
        "validation_held": len(data.validation.take(work.VALIDATION_EXAMPLES)),
        "validation_examples": len(validation) // batch_size * batch_size,
        "first_selectable_epoch": build.first_selectable_epoch(settings),
        "data": os.path.relpath(shared, out),
        "order": os.path.relpath(order, out),
        "data_sha256": sha,
    }
    (out / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def check_exportable(settings: Settings) -> None:
    """Raises UsageError for what changes the step between epochs."""
    if METHODS[settings.method].weight_pruning:
        raise UsageError(
            f"--method={settings.method} cannot be exported: ADMM works between epochs"
        )
    if is_file(settings.network):
        raise UsageError(f"--network={settings.network} cannot be exported; name a network")
    if settings.shrink:
        raise UsageError("--shrink cannot be exported: it changes the network between epochs")


def write_data(
    path: pathlib.Path, data: loading.Dataset, settings: Settings, data_dir: str | None
) -> str:
    """Writes the examples, unless they are there.

    Where TFDS keeps JPEG, the training images are written as such, with the little that Pillow
    decodes otherwise.

    Returns:
        Their digest.

    Raises:
        UsageError: the file holds others.
    """
    split, validation = data.train, data.validation.take(work.VALIDATION_EXAMPLES)
    held = {
        "labels": split.labels.astype(np.int32),
        "validation_images": accelerator_run.packed(validation.images),
        "validation_labels": validation.labels.astype(np.int32),
        "shape": split.image_shape,
    }
    arrays = split.images, held["labels"], validation.images, held["validation_labels"]
    sha = accelerator_run.digest(*arrays)
    if path.exists():
        with np.load(path) as found:
            if str(found["sha256"]) != sha:
                raise UsageError(f"--data={path} holds other examples; name another file")
        return sha
    path.parent.mkdir(parents=True, exist_ok=True)
    files = jpeg_files(settings, data_dir, len(split))
    if files is None:
        held |= {"images": accelerator_run.packed(split.images)}
    else:
        content = np.frombuffer(b"".join(files), np.uint8)
        lengths = np.array([len(file) for file in files], np.int32)
        # TensorFlow's fast inverse transform makes other bits than Pillow's accurate one.
        correction = split.images - accelerator_run.decoded(content, lengths)
        held |= {"jpeg": accelerator_run.packed(content), "lengths": lengths}
        held |= {"correction": accelerator_run.packed(correction)}
    np.savez(path, sha256=sha, **held)
    return sha


def write_order(beside: pathlib.Path, settings: Settings, examples: int) -> pathlib.Path:
    """Writes the order of the examples in every epoch, unless there is one for so many epochs."""
    path = beside.with_name(f"{beside.stem}-order-{examples}-seed{settings.seed}.npz")
    if path.exists():
        with np.load(path) as held:
            if len(held["order"]) >= settings.epochs:
                return path
    seeds = [randomness.seed_of(settings.seed, "order", i) for i in range(settings.epochs)]
    order = np.stack([randomness.permutation(examples, seed).numpy() for seed in seeds])
    np.savez(path, order=order.astype(np.uint16 if examples <= 2**16 else np.uint32))
    return path


def jpeg_files(settings: Settings, data_dir: str | None, examples: int) -> list[bytes] | None:
    """The JPEG files of the first training examples of a TFDS dataset; None if it has no such."""
    import tensorflow_datasets as datasets

    kind, _, rest = settings.dataset.partition(":")
    if kind in ("digits", "folder"):
        return None
    part = tfds.survey(rest or kind, data_dir, False)["train"]
    image = part.builder.info.supervised_keys[0]
    encoded = part.builder.as_dataset(
        split=part.split,
        decoders={image: datasets.decode.SkipDecoding()},
        read_config=datasets.ReadConfig(interleave_cycle_length=1),
    )
    rows = np.arange(len(encoded)) if part.rows is None else part.rows
    files = []
    for example in encoded.as_numpy_iterator():
        if not example[image].startswith(b"\xff\xd8"):
            return None
        files.append(example[image])
    return [files[row] for row in rows[:examples]]


# ---- Import ----


def read_trained(
    exported: pathlib.Path,
    trained: pathlib.Path,
    run: RunDirectory,
    data_dir: str | None = None,
    overwrite: bool = False,
) -> None:
    """Makes a finished run of what `accelerator_run` trained.

    Raises:
        UsageError: a file is absent, or the run directory holds something.
        TrainingError: the gates have collapsed.
    """
    try:
        meta = json.loads((exported / "meta.json").read_text())
        machine = json.loads((trained / "machine.json").read_text())
        rows = accelerator_run.read_history(trained / "history.csv")
        state = accelerator_run.load_arrays(trained / "state.npz")
        (gates,) = accelerator_run.load_arrays(trained / "gates.npz")
        kept = trained / "best.npz"
        best = accelerator_run.load_arrays(kept) if kept.exists() else []
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{exported} and {trained} hold no trained export: {error}") from error
    settings = validated(meta["settings"])
    run.check(settings, overwrite)
    if run.config_path.exists() and not overwrite:
        raise UsageError(f"{run.path} holds a run; choose another --run_dir, or --overwrite")
    if len(rows) < settings.epochs:
        print(f"warning: {len(rows)} of {settings.epochs} epochs were trained", file=sys.stderr)
    data = loading.load(settings.source, data_dir, False, settings.train_examples)
    validation, test = work.evaluated_splits(settings, data)
    network = build.build_network(settings, "float32")
    classifier = classifier_of(settings, meta["train_examples"], meta["steps"])
    # Keras numbers names anew in every process: the order and the shapes are compared.
    wanted = [tuple(variable.shape) for variable in state_of(classifier).values()]
    if [array.shape for array in state] != wanted:
        raise UsageError(f"{exported} was written by another version of this package")
    last = [state[place] for place in places_of_deployed(classifier)]

    with run.owned():
        if overwrite:
            run.clear()
        run.begin(settings, meta["command"], meta["base"], trained_on=machine)
        # ---- The epochs; the gates were kept of each ----
        metrics, timings, overfitted = [], [], False
        network.set_weights(last)
        for row, numbers in zip(rows, gates, strict=True):
            set_gates(network, numbers)
            terms = {name: row[name] for name in meta["terms"]}
            terms["nonfinite"] = round(terms["nonfinite"] * meta["steps"])
            # None in an epoch that was not evaluated.
            figures = (row.get(f"validation_{f}", np.nan) for f in accelerator_run.FIGURES)
            found = Result(len(validation), *figures, {})
            step = row["epoch"] * meta["steps"]
            metrics.append(history.epoch_row(row["epoch"], step, terms, found, network))
            images = meta["steps"] * settings.batch_size
            timings.append(history.epoch_timing(row["epoch"], row["seconds"], images))
            overfitted = overfitted or overfitting.noticed(settings, metrics)
        run.write_metrics(metrics, timings)

        # ---- The result ----
        epoch = len(rows)
        if (settings.select == "best" or overfitted) and best:
            epoch = 1 + int(np.nanargmax([row["validation_robust_accuracy"] for row in rows]))
            network.set_weights(best)
        collapse.check_not_collapsed(network, epoch, run)
        stopped = len(rows) if overfitted else None
        record = final_record(settings, network, test, timings, epoch, stopped)
        run.write_weights(network)
        run.write_results([record])
    print(console.result_table(record))


def set_gates(network: keras.Model, numbers: np.ndarray) -> None:
    """Assigns to the gates what `accelerator_run.flat` made of their parameters."""
    variables = [weight for weight in network.weights if is_gate_variable(weight)]
    ends = np.cumsum([int(np.prod(variable.shape)) for variable in variables])
    for variable, end in zip(variables, ends, strict=True):
        size = int(np.prod(variable.shape))
        variable.assign(numbers[end - size : end].reshape(variable.shape))


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        accelerator_run.main(sys.argv[2:])
    else:
        program.run(main, __doc__, define, operands=True)
