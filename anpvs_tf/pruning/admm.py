"""Weight pruning by ADMM, concurrent with training (Ye et al. 2019).

Training minimises its loss + rho/2 sum ||W - Z + U||^2 (the W-step). Between epochs
Z becomes the kernel of the asked sparsity that is nearest to W + U, and U grows by
W - Z. In the end the kernels themselves are cut to that sparsity, and training goes
on with the weights that are left.
"""

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import graph
from anpvs_tf.pruning import layer_functions
from anpvs_tf.pruning.channels import Support


def kept(kernel: np.ndarray, ratio: float, structure: str) -> np.ndarray:
    """Says where the nearest kernel of a sparsity is not zero; there it equals `kernel`.

    Of n units, the round(ratio * n) of the smallest l2 norm become zero; of equal ones
    those that come first.

    Args:
        kernel: [height, width, in, out] or [in, out].
        ratio: share of the units that become zero, in [0, 1].
        structure: the unit: "irregular" a weight; "column" the weights of all
            filters at one (height, width, in); "filter" all weights of an output feature.

    Returns:
        bool, of the kernel's rank; the axes that a unit extends over have size 1.
    """
    within = {"irregular": (), "column": (-1,), "filter": tuple(range(kernel.ndim - 1))}
    squares = np.sum(np.square(kernel, dtype=np.float64), axis=within[structure], keepdims=True)
    weakest = np.argsort(squares, axis=None, kind="stable")[: round(ratio * squares.size)]
    mask = np.ones(squares.size, bool)
    mask[weakest] = False
    return mask.reshape(squares.shape)


class WeightPruning:
    """Brings the kernels of a network to a sparsity while it is trained.

    Pruned are the kernels of all convolutions and dense layers that are trained, but for the
    logits' and transposed ones, the first layer among them as in the authors' code, each to the
    same ratio. With "filter" a pruned feature also loses its bias and the scale and offset of a
    batch normalisation behind it, so that it is exactly zero.

    The training step adds `penalty()` to the loss of the weights and sends gradients
    through `mask_gradients`; it is the same step before and after the cut. Make it in the
    scope of the network's distribution strategy.

    Args:
        network: functional; its output is the logits, or a dict of which "logits" is one.
        ratio: share of the units of each kernel that become zero, in (0, 1).
        structure: "irregular", "column" or "filter", see `kept`.
        admm_epochs: epochs before the kernels are cut.
        interval: epochs between two updates of Z and U.
        rho: of the first epoch.
        rho_growth: factor of rho at each update of Z and U.

    Raises:
        UsageError: a layer that `FrozenNetwork` does not support, or a layer that would
            lose everything.
    """

    def __init__(
        self,
        network: keras.Model,
        ratio: float,
        structure: str = "irregular",
        *,
        admm_epochs: int,
        interval: int,
        rho: float,
        rho_growth: float,
    ):
        self.network = network
        self.ratio = ratio
        self.structure = structure
        self.admm_epochs = admm_epochs
        self.interval = interval
        self.rho_growth = rho_growth
        nodes = graph.nodes_of(network, graph.logits_of(network))
        hidden = [
            node
            for node in graph.hidden(nodes)
            if node.layer.trainable and node.kind != "transposed"
        ]
        if not hidden:
            raise UsageError(
                f"{network.name} has no kernel to prune: a convolution or dense layer before the "
                "last, which is trained"
            )
        self.kernels = {node.layer.name: node.layer.kernel for node in hidden}
        self.z, self.u, self.masks = {}, {}, {}
        for name, kernel in self.kernels.items():
            mask = kept(np.asarray(kernel), ratio, structure)
            if not mask.any():
                raise UsageError(
                    f"pruning {ratio:g} of the {mask.size} units of layer {name!r} leaves none: "
                    "choose a lower ratio"
                )
            self.z[name] = tf.Variable(tf.zeros(kernel.shape), trainable=False)
            self.u[name] = tf.Variable(tf.zeros(kernel.shape), trainable=False)
            self.masks[name] = tf.Variable(tf.ones(mask.shape, tf.bool), trainable=False)
        self.rho = tf.Variable(rho, trainable=False, dtype=tf.float32)
        # {id of a trained variable: the layer whose mask it follows}
        self._layer_of = {id(kernel): name for name, kernel in self.kernels.items()}
        if structure == "filter":
            for node in hidden:
                for vector in _vectors(node, nodes):
                    self._layer_of[id(vector)] = node.layer.name

    def state(self) -> dict[str, tf.Variable]:
        """Returns the variables that a resumed run needs, by name."""
        state = {"rho": self.rho}
        for kind, held in (("z", self.z), ("u", self.u), ("mask", self.masks)):
            state |= {f"{name}_{kind}": variable for name, variable in held.items()}
        return state

    def penalty(self) -> tf.Tensor:
        """Computes rho/2 sum ||W - Z + U||^2, a float32 scalar; 0 after the cut."""
        distances = [
            tf.nn.l2_loss(layer_functions.read(kernel) - self.z[name] + self.u[name])
            for name, kernel in self.kernels.items()
        ]
        return self.rho * tf.add_n(distances)

    def mask_gradients(self, gradients: list, variables: list) -> list:
        """Returns the gradients of `variables`, and 0 for the weights that have been cut."""
        return [
            gradient if gradient is None else self._cut(gradient, variable)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]

    def begin_epoch(self, epoch: int, optimizer: keras.optimizers.Optimizer) -> bool:
        """Updates Z and U, or cuts the kernels, if the epoch is one for it.

        Args:
            epoch: counted from 1.
            optimizer: a built `GroupedAdam`, or one inside a `LossScaleOptimizer`.

        Returns:
            Whether the kernels were cut, so that features may have vanished.
        """
        if epoch == self.admm_epochs + 1:
            self._prune(optimizer)
            return True
        if epoch <= self.admm_epochs and (epoch - 1) % self.interval == 0:
            self._update(first=epoch == 1)
        return False

    def _update(self, first: bool) -> None:
        for name, kernel in self.kernels.items():
            w, u = np.asarray(kernel), self.u[name].numpy()
            z = (w + u) * kept(w + u, self.ratio, self.structure)
            self.z[name].assign(z)
            if not first:
                # U holds the dual variable over rho, which grows.
                self.u[name].assign((u + w - z) / self.rho_growth)
        if not first:
            self.rho.assign(self.rho * self.rho_growth)

    def _prune(self, optimizer: keras.optimizers.Optimizer) -> None:
        for name, kernel in self.kernels.items():
            self.masks[name].assign(kept(np.asarray(kernel), self.ratio, self.structure))
        self.rho.assign(0.0)
        # Without moments, Adam does not change a weight that has no gradient.
        for variable, *moments in zip(
            self.network.trainable_variables, *optimizer.slots(), strict=True
        ):
            for held in (variable, *moments):
                held.assign(self._cut(held, variable))

    def _cut(self, values, variable) -> tf.Tensor:
        """Returns `values`, of the shape of `variable`, and 0 where that has been cut."""
        values = tf.convert_to_tensor(values)
        name = self._layer_of.get(id(variable))
        if name is None:
            return values
        mask = self.masks[name]
        mask = mask if len(values.shape) > 1 else tf.reshape(mask, [-1])
        return tf.where(mask, values, tf.zeros([], values.dtype))

    def support(self) -> Support:
        """Says where the network's variables may differ from zero from now on."""
        return {
            v.path: self._cut(tf.ones(v.shape), v).numpy() > 0
            for v in self.network.trainable_variables
            if id(v) in self._layer_of
        }


def _vectors(node: graph.Node, nodes: list[graph.Node]) -> list:
    """Returns the variables besides its kernel that make a feature of `node` nonzero."""
    vectors = [node.layer.bias] if node.layer.use_bias else []
    normalisations = [
        n.layer for n in nodes if isinstance(n.layer, keras.layers.BatchNormalization)
    ]
    for reader in nodes:
        # A layer that is called elsewhere too is not this feature's alone.
        if node.output in reader.inputs and normalisations.count(reader.layer) == 1:
            vectors += [v for v in (reader.layer.gamma, reader.layer.beta) if v is not None]
    return vectors
