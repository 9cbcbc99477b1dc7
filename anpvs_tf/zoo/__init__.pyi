from .shelf import card as card
from .shelf import entry as entry
from .shelf import load as load
from .shelf import names as names
