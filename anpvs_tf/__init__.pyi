from . import attacks as attacks
from . import zoo as zoo
from .common.errors import TrainingError as TrainingError
from .common.errors import UsageError as UsageError
from .evaluation.arrays import evaluate as evaluate
from .methods.hyperparameters import Objective as Objective
from .methods.optimizer import GroupedAdam as GroupedAdam
from .methods.registry import METHODS as METHODS
from .methods.robust_classifier import RobustClassifier as RobustClassifier
from .networks.architectures import lenet5 as lenet5
from .networks.architectures import resnet18 as resnet18
from .networks.architectures import resnet20 as resnet20
from .networks.architectures import resnet32 as resnet32
from .networks.architectures import vgg16 as vgg16
from .networks.gate import gates_of as gates_of
from .networks.gating import add_gates as add_gates
from .pruning.compact import freeze as freeze
from .pruning.frozen import FrozenNetwork as FrozenNetwork

__version__: str
