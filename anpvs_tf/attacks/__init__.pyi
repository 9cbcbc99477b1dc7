from .entry import apgd as apgd
from .entry import fab as fab
from .entry import fgsm as fgsm
from .entry import pgd as pgd
from .entry import random_noise as random_noise
from .entry import square as square
