"""Networks built by name, their weights, and the logits in what they return.

Layer: models.  Imports _core only.
"""

from offramp.models.alexnet import AlexNet, alexnet
from offramp.models.bottleneck import BottleneckResNet, resnet50
from offramp.models.densenet import DenseNet, densenet121
from offramp.models.googlenet import GoogLeNet, googlenet
from offramp.models.inception import InceptionV3, inception_v3
from offramp.models.logits import extract_logits
from offramp.models.preresnet import PreResNet, cifar_preresnet
from offramp.models.resnet import ResNet, cifar_resnet, resnet21
from offramp.models.small_cnn import SmallCNN, small_cnn
from offramp.models.spec import MODELS, ModelSpec, build, model_factory
from offramp.models.weights import load_weights, save_weights

__all__ = [
    "MODELS",
    "AlexNet",
    "BottleneckResNet",
    "DenseNet",
    "GoogLeNet",
    "InceptionV3",
    "ModelSpec",
    "PreResNet",
    "ResNet",
    "SmallCNN",
    "alexnet",
    "build",
    "cifar_preresnet",
    "cifar_resnet",
    "densenet121",
    "extract_logits",
    "googlenet",
    "inception_v3",
    "load_weights",
    "model_factory",
    "resnet21",
    "resnet50",
    "save_weights",
    "small_cnn",
]
