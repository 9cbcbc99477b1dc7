"""Every attack on linear classifiers, whose smallest adversarial radius has a closed form.

From an image, class c overtakes the label y of the classifier x W + b within a radius of
(z_y - z_c) / ||w_c - w_y||_q, where q is 1 for linf and 2 for l2, as long as no pixel meets 0 or 1
(Hoelder's inequality). The smallest over c is the image's margin.
"""

import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.attacks.registry import ATTACKS, stages
from anpvs_tf.attacks.settings import AttackSettings
from anpvs_tf.attacks.threat_model import NORMS
from anpvs_tf.common import randomness

PIXELS = 9
# Targeted attacks aim at each of several classes. With two, the gradient of any loss leads straight
# to the other one. AutoAttack is made of the stages of the others.
CLASSES = {name: 2 for name in ATTACKS if not name.startswith("autoattack")}
CLASSES |= {"apgd-t": 4, "fab-t": 4}
# An attack has to succeed from 1.02 margins on; those without gradients, from:
SURE = {("square", "linf"): 1.05, ("square", "l2"): 1.8, ("noise", "linf"): 6, ("noise", "l2"): 4}


def margins(logits, labels, weights, norm):
    order, found = {"linf": 1, "l2": 2}[norm], []
    for z, y in zip(logits, labels, strict=True):
        others = np.delete(np.arange(len(z)), y)
        lengths = np.linalg.norm(weights[:, others] - weights[:, [y]], order, axis=0)
        found.append(np.min((z[y] - z[others]) / lengths))
    return np.array(found)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("name", "classes"), CLASSES.items())
def test_succeeds_above_the_margin_and_never_below(name, classes, norm):
    rng = np.random.default_rng(classes)
    weights = rng.normal(size=(PIXELS, classes)).astype(np.float32)
    images = rng.uniform(0.4, 0.6, (100, 3, 3, 1)).astype(np.float32)

    def linear(images):
        pixels = tf.reshape(images - 0.5, [-1, PIXELS])
        return {"logits": pixels @ weights, "still": tf.zeros_like(pixels)}

    logits = linear(images)["logits"].numpy()
    labels = logits.argmax(axis=1)
    smallest = margins(logits.astype(float), labels, weights.astype(float), norm)
    epsilon = float(np.sort(smallest)[60]) * 1.0201
    assert epsilon < 0.4  # so that no pixel meets 0 or 1

    broken = np.zeros(100, bool)
    settings = AttackSettings(epsilon, norm, classes=classes, steps=30, queries=200, noise_draws=50)
    for stage in stages(name, settings):
        attacked = stage.run(linear, images, labels, randomness.seed_of(0))
        broken |= linear(attacked)["logits"].numpy().argmax(axis=1) != labels
    sure = epsilon / SURE.get((name, norm), 1.02)
    assert (smallest <= sure).sum() >= 8
    assert broken[smallest <= sure].all()
    assert not broken[smallest > epsilon * (1 + 1e-5)].any()
