"""Training of exit heads: the backbone stays, heads do not disturb each other, runs go on."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import offramp
from offramp._core.errors import FileFormatError, InputError, UnknownNameError
from offramp.data import arrays, digits
from offramp.evaluate import replay
from offramp.models import cut_free if False else make_head, small_cnn
