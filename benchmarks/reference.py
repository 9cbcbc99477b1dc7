"""Reference attacks in PyTorch, and the network that they attack: a copy of ours.

AutoAttack is the authors' code, as the PyPI package `pyautoattack` has it; `pip install -e
'.[reference]'` installs it. PyTorch and the package are imported where they are needed.
"""

import importlib.metadata
from collections.abc import Callable

import keras
import numpy as np

from anpvs_tf.pruning import compact
from anpvs_tf.serving import torch_file

PACKAGE = "pyautoattack"

# (uint8 images [examples, H, W, C] / 255, int64 labels) -> adversarial images of the same shape
ReferenceAttack = Callable[[np.ndarray, np.ndarray], np.ndarray]


def installed(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_copy(network: keras.Model):
    """A network as it is deployed, as a `torch.nn.Module`: images [batch, C, H, W] -> logits.

    Raises:
        UsageError: a layer that `--format=torch` does not write.
    """
    import torch

    source, weights = torch_file.module_of(compact.freeze(network), "the network")
    module = {"__file__": __file__}
    exec(source, module)
    model = module["Network"]()
    state = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    model.load_state_dict(state)
    # Channels last: PGD took two thirds of the time that it takes with PyTorch's default.
    model = model.eval().to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def to_torch(images: np.ndarray):
    """float32 [batch, H, W, C] -> a tensor [batch, C, H, W]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def from_torch(images) -> np.ndarray:
    return np.moveaxis(images.detach().numpy(), 1, -1)


def _standard(model, epsilon: float, norm: str, seed: int):
    from pyautoattack import AutoAttack

    return AutoAttack(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=epsilon, seed=seed)


def autoattack(
    model, component: str | None, *, epsilon, norm, seed, batch_size, queries, targets
) -> ReferenceAttack:
    """The reference AutoAttack, standard version, or one component of it.

    Images that it does not break, and those that are wrong already, are returned as they are.

    Args:
        model: as of `torch_copy`.
        component: "apgd-ce", "apgd-t", "fab-t" or "square"; None for all four in turn.
        queries: of Square.
        targets: of "apgd-t" and "fab-t".
    """
    import torch

    made = _standard(model, epsilon, norm, seed)
    made.square.n_queries = queries
    made.apgd_targeted.n_target_classes = made.fab.n_target_classes = targets
    if component is not None:
        made.attacks_to_run = [component]

    def attack(images, labels):
        found, _ = made.run_standard_evaluation(
            to_torch(images), torch.from_numpy(labels), batch_size=batch_size
        )
        return from_torch(found)

    return attack


def highest_loss(model, *, epsilon, norm, seed, batch_size) -> ReferenceAttack:
    """The reference APGD on cross-entropy: the iterates of the highest loss."""
    import torch

    made = _standard(model, epsilon, norm, seed).apgd

    def batch(clean, truth):
        torch.manual_seed(seed)
        with torch.no_grad():
            return made.perturb(clean, truth, best_loss=True)

    return _in_batches(batch, batch_size)


def pgd(model, *, epsilon, step_size, steps, batch_size) -> ReferenceAttack:
    """PGD in the l-infinity ball as a PyTorch user would write it."""
    import torch
    from torch.nn import functional

    def batch(clean, truth):
        low = torch.clamp(clean - epsilon, min=0.0)
        high = torch.clamp(clean + epsilon, max=1.0)
        x = (clean + torch.empty_like(clean).uniform_(-epsilon, epsilon)).clamp(low, high)
        for _ in range(steps):
            x.requires_grad_()
            loss = functional.cross_entropy(model(x), truth, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            x = (x.detach() + step_size * gradient.sign()).clamp(low, high)
        return x

    return _in_batches(batch, batch_size)


def foolbox_pgd(model, *, epsilon, step_size, steps, batch_size) -> ReferenceAttack:
    """The same by Foolbox, on PyTorch."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    made = foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=steps, random_start=True)

    def batch(clean, truth):
        _, found, _ = made(wrapped, clean, truth, epsilons=epsilon)
        return found

    return _in_batches(batch, batch_size)


def _in_batches(batch, batch_size: int) -> ReferenceAttack:
    import torch

    def attack(images, labels):
        found = []
        for i in range(0, len(images), batch_size):
            x, y = images[i : i + batch_size], torch.from_numpy(labels[i : i + batch_size])
            found.append(from_torch(batch(to_torch(x), y)))
        return np.concatenate(found)

    return attack
