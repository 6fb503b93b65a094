"""Training: what the project itself has to train; trained networks are its usual input.

Layer: train.
"""

from offramp.train.classifier import train_classifier
from offramp.train.heads import train_heads
from offramp.train.joint import JointEpoch, JointSweep, JointTraining, sweep_joint, train_joint
from offramp.train.learner import HeadHistory

__all__ = [
    "HeadHistory",
    "JointEpoch",
    "JointSweep",
    "JointTraining",
    "sweep_joint",
    "train_classifier",
    "train_heads",
    "train_joint",
]
