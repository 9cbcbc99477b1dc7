"""How much of a network is left: active features and sparsity."""

import keras
import numpy as np

from anpvs_tf.gates import gates_of


def active_features(network: keras.Model) -> dict[str, list[int]]:
    """{gate's layer: [active, total]} for every gate of the network."""
    counts = {}
    for gate in gates_of(network):
        mask = np.asarray(gate.mean_mask())
        counts[gate.name.removesuffix("_gate")] = [int(np.count_nonzero(mask)), mask.size]
    return counts


def sparsity(counts: dict[str, list[int]]) -> float:
    """Share of the gated features that is pruned, in [0, 1]; 0 without gates."""
    total = sum(size for _, size in counts.values())
    return 1.0 - sum(active for active, _ in counts.values()) / total if total else 0.0
