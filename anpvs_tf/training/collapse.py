"""Gates that have closed every path through a network."""

import keras

from anpvs_tf.common.errors import TrainingError, UsageError
from anpvs_tf.pruning import efficiency
from anpvs_tf.pruning.frozen import FrozenNetwork
from anpvs_tf.runs.directory import RunDirectory


def check_not_collapsed(network: keras.Model, epoch: int, run: RunDirectory) -> None:
    """Raises TrainingError if no feature connects image and logits: the network cannot recover."""
    try:
        FrozenNetwork(network)
    except UsageError as error:
        counts = efficiency.active_features(network)
        left = ", ".join(f"{layer} {active}/{total}" for layer, (active, total) in counts.items())
        raise TrainingError(
            f"the gates collapsed in epoch {epoch} (active features: {left}); start anew with a "
            "larger --kl_warmup_epochs, a smaller --beta or a smaller --gate_learning_rate "
            f"({run.path} keeps the epochs before)"
        ) from error
