"""Makes the result records of all measurements, by training and by bin/evaluate.py."""

import keras

from anpvs_tf.pruning import efficiency
from anpvs_tf.runs import directory
from anpvs_tf.runs.result_record import ResultRecord
from anpvs_tf.runs.settings import Settings


def record(
    *,
    dataset: str,
    split: str,
    examples: int,
    norm: str,
    epsilon: float,
    clean_accuracy: float,
    robust_accuracy: float | None,
    settings: Settings | None = None,
    network: keras.Model | None = None,
) -> ResultRecord:
    """Makes the record of a measurement; the caller adds its attack.

    Args:
        settings, network: of the run that was measured; None for a model that was not
            trained here. The other arguments are as in `ResultRecord`.
    """
    made: ResultRecord = {
        "dataset": dataset,
        "split": split,
        "examples": examples,
        "threat_model": {"norm": norm, "epsilon": epsilon},
        "clean_accuracy": clean_accuracy,
        "robust_accuracy": robust_accuracy,
    }
    if settings is not None:
        counts = efficiency.active_features(network)
        made |= {
            "method": settings.method,
            "network": settings.network,
            "width": settings.width,
            "seed": settings.seed,
            "sparsity": efficiency.sparsity(counts),
            "weight_sparsity": efficiency.sparsity(efficiency.nonzero_weights(network)),
            "active_features": counts,
        }
    return made | {"date": directory.now(), "versions": directory.versions()}
