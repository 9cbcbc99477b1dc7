"""The networks: images in [0, 1] -> {"logits": ..., "<latent layer>": ...}.

Each is a Keras functional model with normalisation inside and an output for
every latent feature layer, in order from the input. With a gate kind, a gate
follows the activation, so that a pruned feature is exactly zero (METHOD: the
authors' gates precede batch normalisation and leave a constant).
"""

import dataclasses
import zlib
from collections.abc import Callable

import keras

from anpvs_tf.networks.gating import add_gates, in_scope, make_gate
from anpvs_tf.networks.names import check_images
from anpvs_tf.networks.shared_dropout import PairedDropout

# Per-channel mean and standard deviation of CIFAR-10's training pixels in [0, 1].
CIFAR_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@dataclasses.dataclass(frozen=True)
class _Layers:
    """Makes layers that agree on dtype policy, gates and seeds."""

    seed: int
    dtype: str
    gate: str | None = None
    gate_scope: str = "all"
    width: float = 1.0

    def features(self, published: int) -> int:
        """Returns the number of features of a layer that has `published` at width 1."""
        return max(1, round(published * self.width))

    def initializer(self, name: str) -> keras.initializers.Initializer:
        # Keyed by the layer's name, so that the same seed starts gated and
        # ungated networks from the same weights.
        return keras.initializers.HeNormal(seed=zlib.crc32(f"{self.seed}/{name}".encode()))

    def normalization(self, x):
        mean, deviation = CIFAR_STATISTICS
        variance = [d * d for d in deviation]
        return keras.layers.Normalization(
            mean=mean, variance=variance, name="normalization", dtype=self.dtype
        )(x)

    def conv(self, x, filters: int, size: int, name: str, **kwargs):
        initializer = self.initializer(name)
        return keras.layers.Conv2D(
            filters, size, name=name, dtype=self.dtype, kernel_initializer=initializer, **kwargs
        )(x)

    def dense(self, x, units: int, name: str, **kwargs):
        initializer = self.initializer(name)
        return keras.layers.Dense(
            units, name=name, dtype=self.dtype, kernel_initializer=initializer, **kwargs
        )(x)

    def relu(self, x, name: str):
        return keras.layers.ReLU(name=name, dtype=self.dtype)(x)

    def pool(self, x, name: str):
        return keras.layers.MaxPooling2D(name=name, dtype=self.dtype)(x)

    def flatten(self, x):
        return keras.layers.Flatten(name="flatten", dtype=self.dtype)(x)

    def batch_norm(self, x, name: str):
        return keras.layers.BatchNormalization(momentum=0.9, name=name, dtype=self.dtype)(x)

    def dropout(self, x, rate: float, name: str):
        return PairedDropout(rate, name=name, dtype=self.dtype)(x)

    def gates(self, x) -> bool:
        return self.gate is not None and in_scope(x.shape, self.gate_scope)

    def gated(self, x, name: str, initial_a_raw: float = -1.0):
        if not self.gates(x):
            return x
        return make_gate(self.gate, f"{name}_gate", self.dtype, initial_a_raw)(x)

    def logits(self, x, classes: int):
        # float32: cross-entropy and attacks need its resolution.
        return keras.layers.Dense(
            classes,
            name="logits",
            dtype="float32",
            kernel_initializer=self.initializer("logits"),
        )(x)


def lenet5(
    image_shape: tuple[int, int, int],
    classes: int,
    gate: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    gate_scope: str = "all",
    width: float = 1.0,
) -> keras.Model:
    """Builds LeNet-5-Caffe: conv 20@5x5, pool, conv 50@5x5, pool, dense 500, dense classes.

    Args:
        image_shape: (height, width, channels) of the images, at least 16 x 16.
        classes: number of classes, at least 2.
        gate: a key of `GATE_KINDS`, or None for an ordinary network. Gated are
            both convolutions' channels, the flattened features and the hidden 500.
        seed: of the initial weights.
        dtype: Keras dtype policy of all layers but the logits.
        gate_scope: a key of `GATE_SCOPES`: which of these are gated.
        width: factor of every hidden layer's number of features, which is rounded and at
            least 1; positive.

    Raises:
        UsageError: for images that are too small, or an unknown gate kind or scope.
    """
    check_images("lenet5", image_shape)
    make = _Layers(seed, dtype, gate, gate_scope, width)
    latents = {}
    images = x = keras.Input(image_shape, name="images")
    for i, filters in enumerate((20, 50), start=1):
        x = make.conv(x, make.features(filters), 5, f"conv{i}")
        x = make.relu(x, f"conv{i}_relu")
        latents[f"conv{i}"] = x = make.gated(x, f"conv{i}")
        x = make.pool(x, f"pool{i}")
    x = make.gated(make.flatten(x), "flatten")
    x = make.relu(make.dense(x, make.features(500), "dense1"), "dense1_relu")
    latents["dense1"] = x = make.gated(x, "dense1")
    return keras.Model(images, {"logits": make.logits(x, classes), **latents}, name="lenet5")


def vgg16(
    image_shape: tuple[int, int, int],
    classes: int,
    gate: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    gate_scope: str = "all",
    width: float = 1.0,
) -> keras.Model:
    """Builds VGG-16 for 32 x 32 images: 13 convolutions with batch normalisation, dense 512.

    Args: as `lenet5`. Gated are the convolutions' channels, the flattened 512
        and the hidden 512.

    Raises:
        UsageError: for images that are not 32 x 32 x 3, or an unknown gate kind or scope.
    """
    check_images("vgg16", image_shape)
    make = _Layers(seed, dtype, gate, gate_scope, width)
    latents = {}
    images = keras.Input(image_shape, name="images")
    x = make.normalization(images)
    for block, widths in enumerate(((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3), 1):
        for i, filters in enumerate(widths, start=1):
            name = f"conv{block}_{i}"
            x = make.conv(x, make.features(filters), 3, name, padding="same", use_bias=False)
            x = make.relu(make.batch_norm(x, f"{name}_bn"), f"{name}_relu")
            latents[name] = x = make.gated(x, name, 2.0)
            if i < len(widths):
                x = make.dropout(x, 0.3 if block == 1 else 0.4, f"{name}_dropout")
        x = make.pool(x, f"pool{block}")
    x = make.gated(make.flatten(x), "flatten")
    if not make.gates(x):
        x = make.dropout(x, 0.5, "flatten_dropout")
    x = make.dense(x, make.features(512), "dense1", use_bias=False)
    x = make.batch_norm(x, "dense1_bn")
    x = make.relu(x, "dense1_relu")
    latents["dense1"] = x = make.gated(x, "dense1")
    if not make.gates(x):
        x = make.dropout(x, 0.5, "dense1_dropout")
    return keras.Model(images, {"logits": make.logits(x, classes), **latents}, name="vgg16")


def _resnet(
    name: str,
    widths: tuple[int, ...],
    blocks: int,
    image_shape: tuple[int, int, int],
    classes: int,
    gate: str | None,
    seed: int,
    dtype: str,
    gate_scope: str,
    width: float,
    coupled: bool,
) -> keras.Model:
    """Builds a stem and stages of basic blocks.

    Where the number of features changes, a projection is the shortcut.

    Args:
        widths: features of each stage, of which the first has the stem's resolution and
            each other half of that before it.
        blocks: of every stage.
    """
    check_images(name, image_shape)
    make = _Layers(seed, dtype, width=width)

    def conv_bn(x, filters, size, strides, name):
        x = make.conv(x, filters, size, name, strides=strides, padding="same", use_bias=False)
        return make.batch_norm(x, f"{name}_bn")

    images = keras.Input(image_shape, name="images")
    stem = conv_bn(make.normalization(images), make.features(widths[0]), 3, 1, "stem")
    x = make.relu(stem, "stem_relu")
    for stage, published in enumerate(widths, start=1):
        filters = make.features(published)
        for block in range(1, blocks + 1):
            prefix = f"block{stage}_{block}"
            strides = 2 if stage > 1 and block == 1 else 1
            y = make.relu(conv_bn(x, filters, 3, strides, f"{prefix}_conv1"), f"{prefix}_relu1")
            y = conv_bn(y, filters, 3, 1, f"{prefix}_conv2")
            if strides == 2:
                x = conv_bn(x, filters, 1, strides, f"{prefix}_shortcut")
            x = keras.layers.Add(name=f"{prefix}_add", dtype=dtype)([x, y])
            x = make.relu(x, f"{prefix}_relu2")
    x = keras.layers.GlobalAveragePooling2D(name="pool", dtype=dtype)(x)
    network = keras.Model(images, make.logits(x, classes), name=name)
    return add_gates(network, gate, gate_scope, coupled)


def resnet18(
    image_shape: tuple[int, int, int],
    classes: int,
    gate: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    gate_scope: str = "all",
    width: float = 1.0,
    coupled: bool = False,
) -> keras.Model:
    """Builds ResNet-18 for 32 x 32 images (He et al. 2016).

    It has a 3x3 stem and four stages of two basic blocks.

    Args: as `lenet5`. Gated are the features that `add_gates` finds removable: inside every
        block, and between stages, where only convolutions read the sum.
        coupled: as of `add_gates`: gate residual sums too.

    Raises:
        UsageError: for images that are not 32 x 32 x 3, or an unknown gate kind or scope.
    """
    return _resnet(
        "resnet18",
        (64, 128, 256, 512),
        2,
        image_shape,
        classes,
        gate,
        seed,
        dtype,
        gate_scope,
        width,
        coupled,
    )


def resnet20(
    image_shape: tuple[int, int, int],
    classes: int,
    gate: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    gate_scope: str = "all",
    width: float = 1.0,
    coupled: bool = False,
) -> keras.Model:
    """Builds ResNet-20 for CIFAR (He et al. 2016).

    Its stages have 16, 32 and 64 features and three blocks each; the second and the third begin
    with a projection, a 1 x 1 convolution. It has 272,474 trained parameters with 10 classes.
    Arguments and errors as of `resnet18`.
    """
    return _resnet(
        "resnet20",
        (16, 32, 64),
        3,
        image_shape,
        classes,
        gate,
        seed,
        dtype,
        gate_scope,
        width,
        coupled,
    )


def resnet32(
    image_shape: tuple[int, int, int],
    classes: int,
    gate: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    gate_scope: str = "all",
    width: float = 1.0,
    coupled: bool = False,
) -> keras.Model:
    """Builds ResNet-32 for CIFAR (He et al. 2016): `resnet20` with five blocks in each stage.

    It has 466,906 trained parameters with 10 classes.
    """
    return _resnet(
        "resnet32",
        (16, 32, 64),
        5,
        image_shape,
        classes,
        gate,
        seed,
        dtype,
        gate_scope,
        width,
        coupled,
    )


NETWORKS: dict[str, Callable[..., keras.Model]] = {
    "lenet5": lenet5,
    "vgg16": vgg16,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet32": resnet32,
}
