"""The AT training step and the networks in PyTorch, to be timed beside ours."""

import functools
import os
from collections.abc import Callable

import numpy as np

from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.networks.architectures import CIFAR_STATISTICS

# PyTorch's threads wait asleep: on a busy machine, spinning made its step 7 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def torch_step(
    network: str,
    precision: str,
    objective: Objective,
    images: np.ndarray,
    labels: np.ndarray,
) -> Callable[[], float]:
    """The AT step in PyTorch, as a PyTorch user would make it fast on a CPU."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    model = torch_network(network).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=1e-3, weight_decay=objective.weight_decay, fused=True
    )
    clean = torch.from_numpy(images).permute(0, 3, 1, 2)
    clean = clean.contiguous(memory_format=torch.channels_last)
    truth = torch.from_numpy(labels)
    # One context for all PGD steps: autocast keeps the cast weights until it is left.
    autocast = functools.partial(
        torch.autocast, "cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"
    )
    low = torch.clamp(clean - objective.epsilon, min=0.0)
    high = torch.clamp(clean + objective.epsilon, max=1.0)

    def craft():
        model.eval()
        start = torch.empty_like(clean).uniform_(-objective.epsilon, objective.epsilon)
        x = torch.clamp(clean + start, 0.0, 1.0)
        with autocast():
            for _ in range(objective.attack_steps):
                x.requires_grad_()
                loss = functional.cross_entropy(model(x).float(), truth, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x)
                x = (x.detach() + objective.step_size * gradient.sign()).clamp(low, high)
        return x

    def step() -> float:
        adversarial = craft()
        model.train()
        optimizer.zero_grad()
        with autocast():
            logits = model(torch.cat([clean, adversarial])).float()
        clean_loss = functional.cross_entropy(logits[: len(truth)], truth)
        adversarial_loss = functional.cross_entropy(logits[len(truth) :], truth)
        w = objective.adversarial_weight
        loss = (clean_loss + w * adversarial_loss) / (1 + w)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def torch_network(network: str):
    """The ungated network of `anpvs_tf.networks`, as a `torch.nn.Module`."""
    import torch
    from torch import nn

    class Standardise(nn.Module):
        def __init__(self):
            super().__init__()
            mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in CIFAR_STATISTICS)
            self.register_buffer("mean", mean)
            self.register_buffer("deviation", deviation)

        def forward(self, x):
            return (x - self.mean) / self.deviation

    if network == "lenet5":
        return nn.Sequential(
            *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
        )
    modules, channels = [Standardise()], 3
    for block, widths in enumerate(((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)):
        for i, width in enumerate(widths):
            modules += [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
            modules += [nn.BatchNorm2d(width), nn.ReLU()]
            if i < len(widths) - 1:
                modules += [nn.Dropout(0.4 if block else 0.3)]
            channels = width
        modules += [nn.MaxPool2d(2)]
    modules += [nn.Flatten(), nn.Dropout(0.5), nn.Linear(512, 512, bias=False)]
    modules += [nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 10)]
    return nn.Sequential(*modules)
