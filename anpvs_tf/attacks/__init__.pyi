from .auto_pgd import apgd as apgd
from .fast_adaptive_boundary import fab as fab
from .fast_gradient_sign import fgsm as fgsm
from .projected_gradient import pgd as pgd
from .square_attack import square as square
from .uniform_noise import random_noise as random_noise
