"""Networks built by name, their weights, and the logits in what they return.

Layer: models.  Imports _core only.
"""

from typing import TYPE_CHECKING

from offramp._core.lazy import lazy

if TYPE_CHECKING:
    from offramp.models.class_heads import ClassHead as ClassHead
    from offramp.models.class_heads import class_head as class_head
    from offramp.models.class_heads import class_logits as class_logits
    from offramp.models.fitting import default_head as default_head
    from offramp.models.fitting import head_arguments as head_arguments
    from offramp.models.fitting import make_head as make_head
    from offramp.models.foreign import FOREIGN as FOREIGN
    from offramp.models.heads import HEADS as HEADS
    from offramp.models.heads import conv_head as conv_head
    from offramp.models.heads import gap_linear as gap_linear
    from offramp.models.heads import pool_mlp as pool_mlp
    from offramp.models.heads import token_linear as token_linear
    from offramp.models.heads import vector_linear as vector_linear
    from offramp.models.in_order import InOrder as InOrder
    from offramp.models.logits import SeveralLogitsError as SeveralLogitsError
    from offramp.models.logits import extract_logits as extract_logits
    from offramp.models.networks.alexnet import AlexNet as AlexNet
    from offramp.models.networks.alexnet import alexnet as alexnet
    from offramp.models.networks.bottleneck import BottleneckResNet as BottleneckResNet
    from offramp.models.networks.bottleneck import resnet50 as resnet50
    from offramp.models.networks.densenet import DenseNet as DenseNet
    from offramp.models.networks.densenet import densenet121 as densenet121
    from offramp.models.networks.googlenet import GoogLeNet as GoogLeNet
    from offramp.models.networks.googlenet import googlenet as googlenet
    from offramp.models.networks.inception import InceptionV3 as InceptionV3
    from offramp.models.networks.inception import inception_v3 as inception_v3
    from offramp.models.networks.preresnet import PreResNet as PreResNet
    from offramp.models.networks.preresnet import cifar_preresnet as cifar_preresnet
    from offramp.models.networks.resnet import ResNet as ResNet
    from offramp.models.networks.resnet import cifar_resnet as cifar_resnet
    from offramp.models.networks.resnet import resnet21 as resnet21
    from offramp.models.networks.small_cnn import SmallCNN as SmallCNN
    from offramp.models.networks.small_cnn import small_cnn as small_cnn
    from offramp.models.pooled import LayerShape as LayerShape
    from offramp.models.pooled import PooledHead as PooledHead
    from offramp.models.pooled import TokenPool as TokenPool
    from offramp.models.spec import MODELS as MODELS
    from offramp.models.spec import WRAPPERS as WRAPPERS
    from offramp.models.spec import ModelSpec as ModelSpec
    from offramp.models.spec import build as build
    from offramp.models.spec import imported as imported
    from offramp.models.spec import model_factory as model_factory
    from offramp.models.weights import load_weights as load_weights
    from offramp.models.weights import save_weights as save_weights

_HOME = {
    "AlexNet": "offramp.models.networks.alexnet",
    "BottleneckResNet": "offramp.models.networks.bottleneck",
    "ClassHead": "offramp.models.class_heads",
    "DenseNet": "offramp.models.networks.densenet",
    "FOREIGN": "offramp.models.foreign",
    "GoogLeNet": "offramp.models.networks.googlenet",
    "HEADS": "offramp.models.heads",
    "InOrder": "offramp.models.in_order",
    "InceptionV3": "offramp.models.networks.inception",
    "LayerShape": "offramp.models.pooled",
    "MODELS": "offramp.models.spec",
    "ModelSpec": "offramp.models.spec",
    "PooledHead": "offramp.models.pooled",
    "PreResNet": "offramp.models.networks.preresnet",
    "ResNet": "offramp.models.networks.resnet",
    "SeveralLogitsError": "offramp.models.logits",
    "SmallCNN": "offramp.models.networks.small_cnn",
    "TokenPool": "offramp.models.pooled",
    "WRAPPERS": "offramp.models.spec",
    "alexnet": "offramp.models.networks.alexnet",
    "build": "offramp.models.spec",
    "cifar_preresnet": "offramp.models.networks.preresnet",
    "cifar_resnet": "offramp.models.networks.resnet",
    "class_head": "offramp.models.class_heads",
    "class_logits": "offramp.models.class_heads",
    "conv_head": "offramp.models.heads",
    "default_head": "offramp.models.fitting",
    "densenet121": "offramp.models.networks.densenet",
    "extract_logits": "offramp.models.logits",
    "gap_linear": "offramp.models.heads",
    "googlenet": "offramp.models.networks.googlenet",
    "head_arguments": "offramp.models.fitting",
    "imported": "offramp.models.spec",
    "inception_v3": "offramp.models.networks.inception",
    "load_weights": "offramp.models.weights",
    "make_head": "offramp.models.fitting",
    "model_factory": "offramp.models.spec",
    "pool_mlp": "offramp.models.heads",
    "resnet21": "offramp.models.networks.resnet",
    "resnet50": "offramp.models.networks.bottleneck",
    "save_weights": "offramp.models.weights",
    "small_cnn": "offramp.models.networks.small_cnn",
    "token_linear": "offramp.models.heads",
    "vector_linear": "offramp.models.heads",
}

__all__ = sorted(_HOME)

__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return list(__all__)
