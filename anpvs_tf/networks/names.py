"""The names of networks, the images that they take, and the features that can be gated.

Imports no TensorFlow.
"""

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks.keras_archive import SUFFIX

NETWORKS = ("lenet5", "vgg16", "resnet18", "resnet20", "resnet32")
# Those with residual sums, whose features can be coupled.
WITH_SUMS = ("resnet18", "resnet20", "resnet32")

# The rank of the features that are gated: maps [batch, H, W, C], or flat [batch, features].
GATE_SCOPES: dict[str, tuple[int, ...]] = {"all": (2, 4), "conv": (4,), "dense": (2,)}


def is_file(network: str) -> bool:
    """Says whether the network is made from a Keras model file."""
    return network.endswith(SUFFIX)


def check_images(network: str, image_shape: tuple[int, int, int]) -> None:
    """Raises UsageError unless a network takes images of (height, width, channels).

    The images that a network from a file takes are checked when it is loaded.
    """
    if is_file(network):
        return
    if network == "lenet5":
        if min(image_shape[:2]) < 16:
            raise UsageError(f"network lenet5 needs images of at least 16 x 16; got {image_shape}")
    elif tuple(image_shape) != (32, 32, 3):
        raise UsageError(f"network {network} needs images of 32 x 32 x 3; got {image_shape}")
