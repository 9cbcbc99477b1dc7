"""One training step (Algorithm 1): craft, then update weights and gates together."""

import dataclasses
import inspect
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.attacks.projected_gradient import pgd
from anpvs_tf.attacks.settings import usual_step_size
from anpvs_tf.common import randomness
from anpvs_tf.common.errors import UsageError
from anpvs_tf.methods import batch_statistics, batches, losses, weight_perturbation
from anpvs_tf.methods.adversary import Crafting
from anpvs_tf.methods.finite_steps import FiniteStep
from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.optimizer import GroupedAdam, is_gate_variable, updating
from anpvs_tf.methods.registry import METHODS, Method
from anpvs_tf.methods.sparsity_target import SparsityTarget
from anpvs_tf.networks import bayesian
from anpvs_tf.networks.gate import Gate, frozen_where, gates_of
from anpvs_tf.pruning.admm import WeightPruning

# Steps of the validation attack, at least.
VALIDATION_STEPS = 10
ACCURACIES = ("clean_accuracy", "robust_accuracy")


@keras.saving.register_keras_serializable("anpvs_tf")
class RobustClassifier(keras.Model):
    """A network with the training step of a method.

    Usable with Keras's `compile`, `fit`, `evaluate` and callbacks, and by the training loop of
    this package, which calls `update` itself. Compile with one optimizer
    (`GroupedAdam` gives gates a rate of their own); the loss is the method's. Kernel and bias
    regularizers of the network's layers are added to the weights' loss.

    `fit` reports the method's terms. `evaluate` and `validation_data` add the accuracies
    "clean_accuracy" and "robust_accuracy", the latter under PGD within the objective's epsilon,
    of at least `VALIDATION_STEPS` steps whatever attack trains.

    Args:
        network: a functional model: images [batch, H, W, C] in [0, 1] -> a dict of
            "logits" [batch, classes] and any number of latent feature tensors.
        method: a row of `registry.METHODS`.
        objective: its hyperparameters.
        seed: of all randomness of training: the attack's start, masks, dropout.
        shares: {output's name: share of its features that `network` still has}, if
            it was shrunk, so that its vulnerability stays that of the whole network.
        pruning: of the weights of `network`, for a method with `weight_pruning`.
        compiled_crafting: XLA compiles the attack of training, as one function. On a CPU its
            convolutions are many times slower.
    """

    def __init__(
        self,
        network: keras.Model,
        method: Method,
        objective: Objective,
        seed: int = 0,
        shares: dict[str, float] | None = None,
        pruning: WeightPruning | None = None,
        compiled_crafting: bool = False,
    ):
        super().__init__(name=f"{network.name}_{method.name}")
        self.network = network
        self.method = method
        self.objective = objective
        self.run_seed = seed
        self.shares = shares or {}
        self.pruning = pruning
        self.gates = gates_of(network)
        if method.frozen_gates:
            for gate in self.gates:
                gate.trainable = False
        check_layer_beta(network, objective.layer_beta)
        self.crafting = Crafting(network, method, objective, pruning, compiled_crafting)
        self.target = None
        if objective.target_sparsity is not None and self.learned_gates:
            self.target = SparsityTarget(network, self.learned_gates, objective)
        self.averaged_statistics: batch_statistics.Averages | None = None
        terms = ["loss", "ce_clean"]
        terms += ["ce_adversarial"] if method.adversarial else []
        terms += ["prediction_shift"] if method.trades else []
        terms += ["vulnerability"] if method.vulnerability else []
        terms += ["kl"] if self.learned_gates or method.bayesian else []
        terms += ["pruning_penalty"] if pruning else []
        terms += ["beta", "pruned"] if self.target else []
        terms += ["regularization"] if self._regularized() else []
        terms += ["weight_decay", "train_accuracy", "nonfinite"]
        self.trackers = {name: keras.metrics.Mean(name) for name in terms}
        tested = [name for name in terms if name not in ("train_accuracy", "nonfinite")]
        self.test_trackers = {name: keras.metrics.Mean(name) for name in (*tested, *ACCURACIES)}
        self.built = True  # The network is; Keras's own check looks for a call with data.

    @property
    def learned_gates(self) -> list[Gate]:
        """The gates that training moves: those that are not frozen."""
        return [gate for gate in self.gates if gate.trainable]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [*self.trackers.values(), *self.test_trackers.values()]

    def compile(self, optimizer="adam", **kwargs) -> None:
        """Compiles as Keras does; averages statistics too if the optimizer averages weights."""
        super().compile(optimizer=optimizer, **kwargs)
        held = self.objective.freeze_gates_step
        if self.learned_gates and getattr(updating(self.optimizer), "gates_until", None) != held:
            raise UsageError(
                f"the objective has freeze_gates_step={held}: compile with an optimizer that holds "
                f"the gates from then on, GroupedAdam(gates_until={held})"
            )
        # Now, so that its variables are in this order in every file.
        self.optimizer.build(self.network.trainable_variables)
        averager = self._averager()
        if averager is not None and averager.average:
            self.averaged_statistics = batch_statistics.Averages(self.network)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded classifier as it was saved; Keras asks for it beside `compile`."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def _averager(self) -> GroupedAdam | None:
        optimizer = updating(self.optimizer)
        return optimizer if isinstance(optimizer, GroupedAdam) else None

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Computes the logits of images, float32 [batch, classes]."""
        return self.network(images, training=training)["logits"]

    def begin_epoch(self, epoch: int) -> bool:
        """Prepares an epoch, counted from 1.

        Returns:
            Whether a `tf.function` of `update` is stale.
        """
        if self.pruning is not None and self.pruning.begin_epoch(epoch, updating(self.optimizer)):
            self.crafting.follow_pruning()
            return True
        return self.crafting.refreeze()

    def state(self) -> dict[str, tf.Variable]:
        """Returns the variables that a resumed run needs besides network and optimizer, by name."""
        state = dict(self.crafting.features)
        for part in (self.pruning, self.target, self.averaged_statistics):
            state |= part.state() if part is not None else {}
        return state

    def deployed_weights(self) -> list[np.ndarray]:
        """Returns the weights that are evaluated and saved: the average, if one is kept."""
        begun = self.optimizer.iterations > 0
        held = self.deployed_variables() if begun else self.network.weights
        return [np.asarray(variable) for variable in held]

    def deployed_variables(self) -> list[keras.Variable | tf.Variable]:
        """Returns the variables that hold `deployed_weights` after the first step."""
        averager = self._averager()
        averages = averager.averages() if averager is not None else []
        if not averages:
            return self.network.weights
        of = dict(zip(map(id, self.network.trainable_variables), averages, strict=True))
        if self.averaged_statistics is not None:
            of |= {id(variable): average for variable, average in self.averaged_statistics.pairs}
        return [of.get(id(weight), weight) for weight in self.network.weights]

    def craft(self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Crafts adversarial images, with the epsilon of this step."""
        warmth = self._progress(0, self.objective.epsilon_warmup_steps)
        return self.crafting.craft(images, labels, seed, warmth)

    def _progress(self, begin: int, length: int) -> tf.Tensor:
        """Computes a ramp: 0 before step `begin`, then linear to 1 over `length` steps."""
        step = tf.cast(self.optimizer.iterations, tf.float32)
        return tf.clip_by_value((step - begin + 1.0) / (length + 1.0), 0.0, 1.0)

    def _gates_frozen(self) -> tf.Tensor | None:
        """Says whether gates act as deployed in this step, bool scalar; None if they never do."""
        step = self.objective.freeze_gates_step
        return None if step is None else self.optimizer.iterations >= step

    def weighted_kl(self) -> tf.Tensor:
        """Computes beta KL of the gates, in nats; the betas are 0, then grow, then stay.

        With a target the betas are those of `SparsityTarget.pressures`.
        """
        objective = self.objective
        if self.target is not None:
            pressures = self.target.pressures(self.optimizer.iterations)
            terms = [
                tf.reduce_sum(pressure * gate.feature_kl())
                for gate, pressure in zip(self.learned_gates, pressures, strict=True)
            ]
            return tf.add_n(terms)
        # From the gates, not from `losses`: a user's network may have regularisers there.
        terms = [
            objective.layer_beta.get(_layer_of(gate), objective.beta) * gate.kl()
            for gate in self.learned_gates
        ]
        ramp = self._progress(objective.kl_warmup_steps, objective.kl_ramp_steps)
        return ramp * tf.add_n(terms)

    def loss_terms(
        self, outputs: dict[str, tf.Tensor], labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor | None, dict[str, tf.Tensor]]:
        """Computes the weights' loss (Eq. 6), the gates' loss (Eq. 5), and the terms of both.

        The gates' loss is None if no gate learns.

        Args:
            outputs: the network's, on [clean; adversarial] for an adversarial
                method, on the clean images otherwise.
            labels: int [images], of the clean images.
        """
        objective = self.objective
        copies = 2 if self.method.adversarial else 1
        # Every tensor is [clean] or [clean, adversarial]; the last is what is attacked.
        logits = tf.split(outputs["logits"], copies)
        smoothing = objective.label_smoothing
        terms = {"ce_clean": losses.cross_entropy(labels, logits[0], smoothing)}
        fit = terms["ce_clean"]
        if self.method.adversarial:
            terms["ce_adversarial"] = losses.cross_entropy(labels, logits[1], smoothing)
        if self.method.trades:
            terms["prediction_shift"] = losses.prediction_shift(*logits)
            fit += objective.trades_beta * terms["prediction_shift"]
        elif self.method.adversarial:
            w = objective.adversarial_weight
            fit = (terms["ce_clean"] + w * terms["ce_adversarial"]) / (1.0 + w)
        kernels = self._kernels()
        terms["weight_decay"] = objective.weight_decay * losses.squared_norm(kernels)
        if self.method.bayesian:
            terms["kl"] = tf.add_n([layer.kl() for layer in bayesian.layers_of(self.network)])
        if self.pruning is not None:
            terms["pruning_penalty"] = self.pruning.penalty()
        if regularized := self._regularized():
            terms["regularization"] = tf.add_n([v.regularizer(v) for v in regularized])
        weight_loss = fit + self._of_weights_alone(terms)
        if self.method.vulnerability:
            names = [name for name in outputs if name != "logits"]
            latents = [tf.split(outputs[name], copies) for name in names]
            terms["vulnerability"] = losses.vulnerability(
                [clean for clean, _ in latents],
                [adversarial for _, adversarial in latents],
                objective.vulnerability_reduction,
                [self.shares.get(name, 1.0) for name in names],
            )
            weight_loss += objective.lambda_vs * terms["vulnerability"]
        terms["loss"] = weight_loss
        gate_loss = None
        if self.learned_gates:
            terms["kl"] = tf.add_n([gate.kl() for gate in self.learned_gates])
            attacked = terms["ce_adversarial" if self.method.adversarial else "ce_clean"]
            gate_loss = attacked + self.weighted_kl() / objective.train_examples
        if self.target is not None:
            terms |= {"beta": self.target.beta(), "pruned": self.target.pruned()}
        terms["train_accuracy"] = losses.accuracy(labels, logits[-1])
        return weight_loss, gate_loss, terms

    def _of_weights_alone(self, terms: dict[str, tf.Tensor]) -> tf.Tensor:
        """Sums the terms of the weights' loss that do not depend on the images."""
        total = terms["weight_decay"]
        if self.method.bayesian:
            total += self.objective.kl_scale * terms["kl"] / self.objective.train_examples
        if self.pruning is not None:
            total += terms["pruning_penalty"]
        return total + terms["regularization"] if "regularization" in terms else total

    def _regularized(self) -> list[keras.Variable]:
        """Lists the variables that a user gave a regularizer."""
        return [v for v in self.network.trainable_variables if v.regularizer is not None]

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains as Keras's `fit`; refuses images outside [0, 1] before (`check_first`)."""
        given = inspect.signature(keras.Model.fit).bind(self, *args, **kwargs).arguments
        batches.check_first(given.get("x"))
        batches.check_first(given.get("validation_data"))
        return super().fit(*args, **kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as Keras's `evaluate`; refuses images outside [0, 1] before."""
        batches.check_first(x)
        return super().evaluate(x, *args, **kwargs)

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Runs Keras's training step: `update`; returns its terms' means over the epoch so far."""
        for name, value in self.update(data).items():
            self.trackers[name].update_state(value)
        return {name: tracker.result() for name, tracker in self.trackers.items()}

    def test_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Runs Keras's validation step: the same terms in inference, and the two accuracies."""
        images, labels = batches.unpacked(data, self._classes())
        objective = self.objective
        steps = max(objective.attack_steps, VALIDATION_STEPS)
        weights = self.crafting.frozen.fold()
        adversarial = pgd(
            lambda x: self.crafting.frozen.apply(weights, x),
            images,
            labels,
            randomness.seed_of(self.run_seed, "validation", 0),
            epsilon=objective.epsilon,
            step_size=usual_step_size(objective.epsilon, steps),
            steps=steps,
            norm=objective.norm,
        )
        both = self.network(tf.concat([images, adversarial], axis=0), training=False)
        halves = {name: tf.split(value, 2) for name, value in both.items()}
        outputs = both
        if not self.method.adversarial:
            outputs = {name: clean for name, (clean, _) in halves.items()}
        terms = self.loss_terms(outputs, labels)[2]
        for name, logits in zip(ACCURACIES, halves["logits"], strict=True):
            terms[name] = losses.accuracy(labels, logits)
        for name, tracker in self.test_trackers.items():
            tracker.update_state(terms[name], tf.shape(images)[0])
        return {name: tracker.result() for name, tracker in self.test_trackers.items()}

    def _classes(self) -> int:
        return self.network.output["logits"].shape[-1]

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration from which Keras restores the classifier.

        Raises:
            UsageError: a method whose state a `.keras` file would not hold.
        """
        averaged = self.averaged_statistics is not None and self.averaged_statistics.pairs
        if self.pruning is not None or self.target is not None or averaged:
            raise UsageError(
                "a classifier that prunes weights, steers to a target or averages batch statistics "
                "has state that a .keras file does not hold: use save_weights_only=True, or save "
                "classifier.network"
            )
        return {
            "network": keras.saving.serialize_keras_object(self.network),
            "method": self.method.name,
            "objective": dataclasses.asdict(self.objective),
            "seed": self.run_seed,
            "shares": self.shares,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RobustClassifier":
        """Makes the classifier that `get_config` describes."""
        objective = dict(config["objective"])
        objective["target_steps"] = tuple(objective["target_steps"])
        return cls(
            keras.saving.deserialize_keras_object(config["network"]),
            METHODS[config["method"]],
            Objective(**objective),
            config["seed"],
            config["shares"],
        )

    # Nothing here depends on a tensor by Python's `if`; converted, it would warn at each line.
    @tf.autograph.experimental.do_not_convert
    def update(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Updates the network on a batch of (images, labels); returns the batch's loss terms.

        Raises:
            UsageError: images or labels of another kind (`batches.unpacked`).
        """
        images, labels = batches.unpacked(data, self._classes())
        replica = tf.distribute.get_replica_context()
        # The number of replicas decides nothing: noise goes by the place in the global batch.
        place = (replica.replica_id_in_sync_group, replica.num_replicas_in_sync)
        seed = randomness.seed_of(self.run_seed, self.optimizer.iterations, 0)
        copies = 1
        if self.method.adversarial:
            copies = 2
            with randomness.scope(seed, 1, *place):
                adversarial = self.craft(images, labels, randomness.fold(seed, "attack"))
            images = tf.concat([images, adversarial], axis=0)

        step = tf.identity(self.optimizer.iterations)
        judged = FiniteStep(self.optimizer, self.network)
        scope = (randomness.fold(seed, "network"), copies, *place)
        # Gradients are summed over replicas.
        share = 1.0 / replica.num_replicas_in_sync
        persistent = bool(self.learned_gates)
        with frozen_where(self._gates_frozen()):
            awp = self.objective.awp
            replaced = self._perturbed_kernels(images, labels, scope) if awp else []
            with tf.GradientTape(persistent=persistent) as tape, randomness.scope(*scope):
                outputs = self._outputs(images, [(v, v + shift) for v, shift in replaced])
                weight_loss, gate_loss, terms = self.loss_terms(outputs, labels)
                weight_objective = self.optimizer.scale_loss(weight_loss * share)
                if gate_loss is not None:
                    gate_objective = self.optimizer.scale_loss(gate_loss * share)
        variables = self.network.trainable_variables
        gate_variables = [v for v in variables if is_gate_variable(v)]
        weights = [v for v in variables if not is_gate_variable(v)]
        gradients = tape.gradient(weight_objective, weights)
        if gate_loss is not None:
            gradients += tape.gradient(gate_objective, gate_variables)
        del tape
        if self.pruning is not None:
            gradients = self.pruning.mask_gradients(gradients, weights + gate_variables)
        of_step = [loss for loss in (weight_loss, gate_loss) if loss is not None]
        terms["nonfinite"], gradients = judged.judge(of_step, gradients)
        share = self._averager().average_share() if self.averaged_statistics else None
        self.optimizer.apply(gradients, weights + gate_variables)
        counted = judged.applied()  # A step that was left out moves nothing.
        batch_statistics.agree(self.network, replica)
        if self.averaged_statistics is not None:
            self.averaged_statistics.advance(counted * share)
        if self.target is not None:
            self.target.advance(step, counted)
        return terms

    def _kernels(self) -> list[keras.Variable]:
        variables = self.network.trainable_variables
        return [v for v in variables if len(v.shape) > 1 and not bayesian.is_scale(v)]

    def _outputs(
        self,
        images: tf.Tensor,
        replaced: list[tuple[keras.Variable, tf.Tensor]],
        update_statistics: bool = True,
    ) -> dict[str, tf.Tensor]:
        """Runs the network in training, with other values in place of some variables."""
        if not replaced and update_statistics:
            outputs = self.network(images, training=True)
            self._check_no_losses_in_calls()
            return outputs
        with keras.StatelessScope(replaced, collect_losses=True) as scope:
            outputs = self.network(images, training=True)
            self._check_no_losses_in_calls()
        for variable in self.network.non_trainable_variables if update_statistics else []:
            if (value := scope.get_current_value(variable)) is not None:
                variable.assign(value)
        return outputs

    def _check_no_losses_in_calls(self) -> None:
        known = (Gate, bayesian.BayesianLayer)
        own = [layer for layer in self.network.layers if not isinstance(layer, known)]
        batches.check_no_losses_in_calls(own)

    def _perturbed_kernels(
        self, images: tf.Tensor, labels: tf.Tensor, scope: tuple
    ) -> list[tuple[keras.Variable, tf.Tensor]]:
        """Pairs each kernel with its shift of AWP (`weight_perturbation`).

        The gradient of an update is taken at the shifted kernels; they are never
        written, so there is nothing to take back.
        """
        kernels = self._kernels()
        with tf.GradientTape() as tape, randomness.scope(*scope):
            outputs = self._outputs(images, [], update_statistics=False)
            weight_loss, _, terms = self.loss_terms(outputs, labels)
            # The shift maximises the terms that depend on the images, and no others.
            ascended = self.optimizer.scale_loss(weight_loss - self._of_weights_alone(terms))
        gradients = tape.gradient(ascended, kernels)
        if self.pruning is not None:
            gradients = self.pruning.mask_gradients(gradients, kernels)
        shifts = weight_perturbation.shifts(kernels, gradients, self.objective.awp)
        return list(zip(kernels, shifts, strict=True))


def check_layer_beta(network: keras.Model, layer_beta: Iterable[str]) -> None:
    """Raises UsageError for a layer after which `network` has no gate."""
    layers = [_layer_of(gate) for gate in gates_of(network)]
    for name in layer_beta:
        if name not in layers:
            raise UsageError(
                f"--layer_beta names layer {name!r}; {network.name} has gates at "
                f"{', '.join(layers)}"
            )


def _layer_of(gate: keras.layers.Layer) -> str:
    return gate.name.removesuffix("_gate")
