"""The type of an entry of results.json."""

from typing import Any, TypedDict


class ThreatModel(TypedDict):
    """norm: "linf" or "l2"; epsilon: the radius in pixel units."""

    norm: str
    epsilon: float


class ResultRecord(TypedDict, total=False):
    """One measurement of one network, as results.json holds it; shares are in [0, 1].

    A key is absent if the value does not exist. Only `threat_model`, `attack`, `dataset`,
    `split`, `examples`, `clean_accuracy`, `robust_accuracy`, `date` and `versions` are in all.

    Attributes:
        dataset, split, examples: what it was measured on.
        method, network, width, seed: of the run; absent for a model that was not trained here.
        model: the run directory or model file, of bin/evaluate.py.
        input_range: the model's values for black and white, if not [0, 1].
        attack: name and settings; of a worst case, `of` lists the attacks.
        clean_accuracy: of unperturbed images; clean_interval: its 95 % interval.
        robust_accuracy: under the attack; None for a stochastic model in single draws.
        accuracy_under_attack, interval: the same share in any case, and its 95 % interval.
        accuracy_after: the share that is left after each stage of the attack, by its name.
        chance: the accuracy of the best constant answer; at_chance: says that the clean accuracy
            is not above it.
        vulnerability, layer_vulnerability: the movement of latent features, mean and by layer.
        sparsity, weight_sparsity: the share of features, or weights, that is pruned.
        active_features: {layer: (active, all)}.
        posterior_draws: of an ensemble, from how many draws of a Bayesian run it is.
        checks: the self-checks, each as `evaluation.self_checks.Check`.
        reliable, unreliable_because: whether the robust accuracy is reliable, and why not.
        per_example: the file of the state of each example; attack_seed: of the attack.
        epoch, stopped, target, efficiency, timing: of bin/train.py alone: the epoch that was
            kept, why training ended early, whether --target_sparsity was reached, the deployed
            network's cost, the time.
        date, versions: when, and by which packages.
    """

    dataset: str
    split: str
    examples: int
    method: str
    network: str
    width: float
    seed: int
    model: str
    input_range: list[float]
    threat_model: ThreatModel
    attack: dict[str, Any]
    clean_accuracy: float
    clean_interval: tuple[float, float]
    robust_accuracy: float | None
    accuracy_under_attack: float
    interval: tuple[float, float]
    accuracy_after: dict[str, float]
    chance: float
    at_chance: str
    vulnerability: float
    layer_vulnerability: dict[str, float]
    sparsity: float
    weight_sparsity: float
    active_features: dict[str, tuple[int, int]]
    posterior_draws: int
    checks: list[dict[str, Any]]
    reliable: bool
    unreliable_because: list[str]
    per_example: str
    attack_seed: int
    epoch: int
    stopped: dict[str, Any]
    target: dict[str, Any]
    efficiency: dict[str, Any]
    timing: dict[str, Any]
    date: str
    versions: dict[str, str]
