"""Classifiers and stopping networks trained together.

Layer: train.  Source: methods.md 3; Guan, Liu, Liu, Peng, IJCAI 2018.
"""

from offramp.train.joint.result import JointEpoch, JointSweep, JointTraining
from offramp.train.joint.sweep import sweep_joint
from offramp.train.joint.training import train_joint

__all__ = ["JointEpoch", "JointSweep", "JointTraining", "sweep_joint", "train_joint"]
