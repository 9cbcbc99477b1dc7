"""The names of networks and of what gates can be put on; imports no TensorFlow."""

NETWORKS = ("lenet5", "vgg16", "resnet18")

# The rank of the features that are gated: maps [batch, H, W, C], or flat [batch, features].
GATE_SCOPES: dict[str, tuple[int, ...]] = {"all": (2, 4), "conv": (4,), "dense": (2,)}
