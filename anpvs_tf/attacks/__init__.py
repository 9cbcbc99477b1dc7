"""Attacks: functions of (images -> logits, images, labels, seed, settings)."""

from anpvs_tf.attacks.apgd import apgd as apgd
from anpvs_tf.attacks.fab import fab as fab
from anpvs_tf.attacks.fgsm import fgsm as fgsm
from anpvs_tf.attacks.pgd import pgd as pgd
from anpvs_tf.attacks.random_noise import random_noise as random_noise
from anpvs_tf.attacks.square import square as square
