"""Finished runs that were never trained, for tests of what reads run directories."""

import functools

import numpy as np

from anpvs_tf.evaluation.evaluator import PgdAttack, Result
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.runs import build, resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.training import history, result


@functools.lru_cache
def _network(dataset, name, gate):
    """An untrained network; of its gates every second is closed."""
    method = next(m for m, row in METHODS.items() if row.gate == gate)
    wanted = {"dataset": dataset, "network": name, "method": method}
    network = build.build_network(resolution.resolve(wanted), "float32")
    for layer in gates_of(network):
        closed = np.arange(layer.a_raw.shape[0]) % 2 == 1
        layer.a_raw.assign(np.where(closed, -12.0, 2.0))
    return network


@functools.lru_cache
def _weights(dataset, name, gate, path):
    directory = RunDirectory(path)
    directory.checkpoints.mkdir(parents=True)
    directory.write_weights(_network(dataset, name, gate))
    return directory.weights_path.read_bytes()


def make(
    path,
    method="anpvs",
    *,
    clean=0.97,
    robust=0.6,
    vulnerability=0.03,
    sparsity=None,
    command=None,
    weights=None,
    examples=359,
    at_chance=None,
    **chosen,
):
    """Writes a finished run to `path`.

    Args:
        sparsity: instead of what the untrained gates say.
        command: without the program; by default the settings that were chosen.
        at_chance: what the record says of its clean accuracy.
        weights: a directory to keep the weights in, for the next run with such a network;
            None leaves them out.
        chosen: settings.
    """
    chosen = {"dataset": "digits", "epochs": 3, **chosen, "method": method}
    resolved = resolution.resolve(chosen)
    run = RunDirectory(path)
    flags = [f"--{name}={value}" for name, value in chosen.items()] if command is None else command
    run.begin(resolved, ["bin/train.py", *flags])
    kind = (resolved.dataset, resolved.network, METHODS[method].gate)
    network = _network(*kind)
    if weights is not None:
        run.weights_path.write_bytes(_weights(*kind, weights / "-".join(map(str, kind))))
    layers = {name: vulnerability for name in network.output if name != "logits"}
    measured = Result(examples, clean, robust, vulnerability, layers)
    attack = PgdAttack(resolved.epsilon, resolved.eval_step_size, resolved.eval_attack_steps)
    record = result.tested(resolved, attack, measured, network)
    if sparsity is not None:
        record["sparsity"] = sparsity
    if at_chance:
        record["at_chance"] = at_chance
    record["efficiency"] = {
        "feature_map_memory": 1 - record["sparsity"] / 2,
        "flops_reduction": 1 + 2 * record["sparsity"],
    }
    terms = {"loss": 2.0, "ce_clean": 1.5, "ce_adversarial": 2.2, "weight_decay": 0.05}
    first = history.epoch_row(0, 0, terms, measured, network)
    rows = []
    for epoch in range(1, resolved.epochs + 1):
        row = {name: value * (0.5 + epoch / 2 / resolved.epochs) for name, value in first.items()}
        rows.append(row | {"epoch": epoch, "step": 40 * epoch})
    run.write_metrics(rows, [{"epoch": row["epoch"], "seconds": 1.0} for row in rows])
    run.write_results([record])
    return run


def evaluate(run, name="pgd", *, accuracy=0.5, epsilon=None, reliable=None, **settings_of_attack):
    """Adds a record as of bin/evaluate.py."""
    held = run.results()
    trained = held[0]
    usual = {"steps": 100, "restarts": 1, "draws": 1}
    threat = dict(trained["threat_model"])
    if epsilon is not None:
        threat["epsilon"] = epsilon
    examples = settings_of_attack.pop("examples", trained["examples"])
    record = {
        **{key: trained[key] for key in ("dataset", "split", "method", "network", "seed")},
        "examples": examples,
        "threat_model": threat,
        "clean_accuracy": trained["clean_accuracy"],
        "robust_accuracy": accuracy,
        "accuracy_under_attack": accuracy,
        "interval": [accuracy - 0.05, accuracy + 0.05],
        "model": str(run.path),
        "attack": {"name": name, **usual, **settings_of_attack},
        "attack_seed": 0,
        "vulnerability": trained["vulnerability"] / 2,
    }
    if reliable is not None:
        check = {"name": "chance", "passed": reliable, "meaning": "masked", "found": "found"}
        record |= {"reliable": reliable, "checks": [check]}
    run.write_results([*held, record])
