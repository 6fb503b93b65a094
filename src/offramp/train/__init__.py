"""Training: what the project itself has to train; trained networks are its usual input.

Layer: train.
"""

from offramp.train.classifier import train_classifier

__all__ = ["train_classifier"]
