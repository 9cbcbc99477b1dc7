"""Attacks: functions of (images -> logits, images, labels, seed, settings)."""

from anpvs_tf.attacks.auto_pgd import apgd as apgd
from anpvs_tf.attacks.fast_adaptive_boundary import fab as fab
from anpvs_tf.attacks.fast_gradient_sign import fgsm as fgsm
from anpvs_tf.attacks.projected_gradient import pgd as pgd
from anpvs_tf.attacks.square_attack import square as square
from anpvs_tf.attacks.uniform_noise import random_noise as random_noise
