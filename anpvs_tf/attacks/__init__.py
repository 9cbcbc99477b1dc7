"""Attacks: functions of (images -> logits, images, labels, seed, settings)."""

from anpvs_tf.attacks.pgd import pgd as pgd
