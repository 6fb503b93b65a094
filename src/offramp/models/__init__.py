"""Networks built by name, their weights, and the logits in what they return.

Layer: models.  Imports _core only.
"""

from offramp.models.logits import extract_logits
from offramp.models.preresnet import PreResNet, cifar_preresnet
from offramp.models.resnet import ResNet, cifar_resnet, resnet21
from offramp.models.small_cnn import SmallCNN, small_cnn
from offramp.models.spec import MODELS, ModelSpec, build, model_factory
from offramp.models.weights import load_weights, save_weights

__all__ = [
    "MODELS",
    "ModelSpec",
    "PreResNet",
    "ResNet",
    "SmallCNN",
    "build",
    "cifar_preresnet",
    "cifar_resnet",
    "extract_logits",
    "load_weights",
    "model_factory",
    "resnet21",
    "save_weights",
    "small_cnn",
]
