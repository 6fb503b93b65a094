"""Networks in PyTorch itself: as they are, prepared, or compiled.

Layer: backends.  Source: measured.md (prepared 1.2 to 2.6 times eager, compiled 1.2 to 1.3).
"""

import warnings
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from offramp._core.batch import apply
from offramp._core.errors import UnsupportedError
from offramp.backends.fold import fold
from offramp.backends.task import Task
from offramp.stages.timing import filled

#: torch takes one example for a case of its own, and another way to convolve from 16 on.
_SIZES = (2, 1, 16)
_VERSIONS = 256


def run_eager(task: Task) -> nn.Module:
    """The network itself."""
    return task.module


def run_folded(task: Task) -> nn.Module:
    """A copy with batch-norms folded and convolutions channels last."""
    return fold(task.module)


def run_compiled(task: Task) -> nn.Module:
    """The prepared network, compiled for any batch size, and for one example apart.

    It is compiled here, which takes from seconds to minutes, and not when the first batch comes.

    Raises:
        UnsupportedError: If it cannot be compiled, for example without a C++ compiler.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import TorchDynamoException

    # Networks of one class share their code, and torch gives up after eight versions of it.
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    try:
        with warnings.catch_warnings(), config.patch({limit: _VERSIONS}):
            warnings.simplefilter("ignore")  # of torch, about what is deprecated within itself
            made = TorchCompiled(fold(task.module))
            for size in _SIZES:
                made.warm_up(filled(task.inputs, size))
    except TorchDynamoException as error:
        raise UnsupportedError(
            f"{task.name} cannot be compiled by torch: {str(error).splitlines()[0]}"
        ) from error
    return made


@final
class TorchCompiled(nn.Module):
    """A network with `torch.compile`, always called in the mode that it was compiled in.

    Args:
        module: In evaluation mode.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.compiled = torch.compile(module)
        self.eval()

    def warm_up(self, batch: Any) -> None:  # noqa: ANN401  (a batch of the network)
        """Compile for batches such as this, of other sizes as well."""
        with torch.inference_mode():
            batch = pytree.tree_map(torch.clone, batch)
            for tensor in pytree.tree_leaves(batch):
                if len(tensor) > 1:
                    torch._dynamo.mark_dynamic(tensor, 0)
            apply(self.compiled, batch)

    @torch.inference_mode()
    def forward(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401  (as the network)
        """Run a batch, given as to the network."""
        args, named = pytree.tree_map_only(Tensor, _inferring, (args, named))
        return self.compiled(*args, **named)


def _inferring(tensor: Tensor) -> Tensor:
    """The same values as a tensor of the inference mode: others would be compiled for again."""
    return tensor if tensor.is_inference() else tensor.clone()
