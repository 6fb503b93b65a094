"""LitServe with its own dynamic batches; its workers import this, so it stands alone."""

import litserve as ls
import numpy as np
import torch
from serving_peers import FULL, image_in, loaded
from torch import Tensor


class Api(ls.LitAPI):  # type: ignore[misc]  (litserve has no types here)
    """One model, whole batches."""

    def __init__(self, bundle: str, backend: str, *, static: bool) -> None:
        super().__init__(max_batch_size=FULL, batch_timeout=0.002)
        self.bundle, self.backend, self.static = bundle, backend, static

    def setup(self, device: str) -> None:
        """Load it in the worker."""
        model = loaded(self.bundle, self.backend)
        self.model = model.reference if self.static else model

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        """An image."""
        return image_in(request)

    def batch(self, inputs: list[np.ndarray]) -> Tensor:
        """Images together."""
        return torch.from_numpy(np.stack(inputs))

    def predict(self, batch: Tensor) -> list[int]:
        """Labels."""
        return self.model(batch).labels.tolist()

    def unbatch(self, output: list[int]) -> list[int]:
        """A label for each."""
        return output

    def encode_response(self, output: int) -> dict[str, int]:
        """What the client gets."""
        return {"label": output}


def run(bundle: str, port: int, backend: str, *, static: bool) -> None:
    """Serve until stopped."""
    server = ls.LitServer(
        Api(bundle, backend, static=static), accelerator="cpu", workers_per_device=1
    )
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
