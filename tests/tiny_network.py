"""A network with one gate in the place of lenet5: its runs compile in a third of the time.

    python tests/tiny_network.py bin/train.py --epochs=1

runs a program with it.
"""

import runpy
import sys

import keras

from anpvs_tf.networks import architectures


def tiny(
    image_shape, classes, gate=None, seed=0, dtype="float32", gate_scope="all", width=1.0
) -> keras.Model:
    """A gated convolution before the logits; arguments and outputs as of `lenet5`."""
    make = architectures._Layers(seed, dtype, gate, gate_scope, width)
    images = keras.Input(image_shape, name="images")
    x = make.relu(make.conv(images, make.features(20), 5, "conv1"), "conv1_relu")
    x = conv1 = make.gated(x, "conv1")
    x = make.flatten(keras.layers.MaxPooling2D(4, name="pool1", dtype=dtype)(x))
    outputs = {"logits": make.logits(x, classes), "conv1": conv1}
    return keras.Model(images, outputs, name="lenet5")


def replace_lenet5() -> None:
    """Makes `--network=lenet5` of this process the network here."""
    architectures.NETWORKS["lenet5"] = tiny


if __name__ == "__main__":
    replace_lenet5()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
