"""Networks built by name, their weights, and the logits in what they return.

Layer: models.  Imports _core only.
"""

from offramp.models.alexnet import AlexNet, alexnet
from offramp.models.bottleneck import BottleneckResNet, resnet50
from offramp.models.class_head import ClassHead, class_head, class_logits
from offramp.models.densenet import DenseNet, densenet121
from offramp.models.fitting import default_head, head_arguments, make_head
from offramp.models.foreign import FOREIGN
from offramp.models.googlenet import GoogLeNet, googlenet
from offramp.models.heads import (
    HEADS,
    conv_head,
    gap_linear,
    pool_mlp,
    token_linear,
    vector_linear,
)
from offramp.models.in_order import InOrder
from offramp.models.inception import InceptionV3, inception_v3
from offramp.models.layer_shape import LayerShape
from offramp.models.logits import SeveralLogitsError, extract_logits
from offramp.models.pooled import PooledHead, TokenPool
from offramp.models.preresnet import PreResNet, cifar_preresnet
from offramp.models.resnet import ResNet, cifar_resnet, resnet21
from offramp.models.small_cnn import SmallCNN, small_cnn
from offramp.models.spec import MODELS, WRAPPERS, ModelSpec, build, imported, model_factory
from offramp.models.weights import load_weights, save_weights

__all__ = [
    "FOREIGN",
    "HEADS",
    "MODELS",
    "WRAPPERS",
    "AlexNet",
    "BottleneckResNet",
    "ClassHead",
    "DenseNet",
    "GoogLeNet",
    "InOrder",
    "InceptionV3",
    "LayerShape",
    "ModelSpec",
    "PooledHead",
    "PreResNet",
    "ResNet",
    "SeveralLogitsError",
    "SmallCNN",
    "TokenPool",
    "alexnet",
    "build",
    "cifar_preresnet",
    "cifar_resnet",
    "class_head",
    "class_logits",
    "conv_head",
    "default_head",
    "densenet121",
    "extract_logits",
    "gap_linear",
    "googlenet",
    "head_arguments",
    "imported",
    "inception_v3",
    "load_weights",
    "make_head",
    "model_factory",
    "pool_mlp",
    "resnet21",
    "resnet50",
    "save_weights",
    "small_cnn",
    "token_linear",
    "vector_linear",
]
