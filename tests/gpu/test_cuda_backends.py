"""Backends on a GPU; skipped where there is none."""

import threading

import pytest
import torch

from offramp.backends import with_backend
from offramp.backends.cuda import BUCKETS
from offramp.models import cifar_resnet
from offramp.runtime import Adaptive
from offramp.stages import Cascade

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def cascade():
    return Cascade.from_models({"net": cifar_resnet(8, width=0.5).eval()})


def images(n):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("backend", ["cuda", "cuda-graph"])
@torch.inference_mode()
def test_a_gpu_answers_as_the_cpu_at_any_batch_size(cascade, backend):
    made = with_backend(cascade, backend, example=images(1))
    for n in (1, 2, 33, 128, max(BUCKETS) + 1):
        found = made(images(n).cuda()).cpu()
        torch.testing.assert_close(found, cascade(images(n)), rtol=1e-2, atol=1e-2)


@torch.inference_mode()
def test_a_graph_is_replayed_and_its_answers_are_kept(cascade):
    module = with_backend(cascade, "cuda-graph", example=images(1)).stage(0).module
    first = module(images(5).cuda())
    kept = first.clone()
    module(images(7).cuda())
    assert torch.equal(first, kept)
    assert set(module._graphs) == {8}  # both were padded to one size


@torch.inference_mode()
def test_moved_weights_are_recorded_again(cascade):
    made = with_backend(cascade, "cuda-graph", example=images(1))
    made(images(5).cuda())
    made.cpu()
    torch.testing.assert_close(made(images(5)), cascade(images(5)), rtol=1e-4, atol=1e-4)
    assert not made.stage(0).module._graphs


def test_a_graph_is_recorded_while_another_thread_uses_the_gpu(cascade):
    module = with_backend(cascade, "cuda-graph", example=images(1)).stage(0).module
    end, failed = threading.Event(), []

    def work():
        side = torch.cuda.Stream()
        try:
            with torch.cuda.stream(side):
                while not end.is_set():
                    torch.empty(2**24, device="cuda").normal_().sum().item()  # memory is asked for
                    torch.cuda.empty_cache()
        except RuntimeError as error:
            failed.append(error)

    other = threading.Thread(target=work)
    other.start()
    try:
        with torch.inference_mode():
            for n in (1, 3, 9, 17):
                found = module(images(n).cuda()).cpu()
                wanted = cascade(images(n))[:, 0]
                torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)
    finally:
        end.set()
        other.join()
    assert not failed


def test_a_stage_on_the_gpu_and_one_in_onnx_runtime_go_together(cascade):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    both = Cascade.from_models({"a": cascade.stage(0).module, "b": cascade.stage(0).module})
    made = with_backend(both, {"a": "onnxruntime", "b": "cuda"}, example=images(1))
    answer = Adaptive.single(made, "a")(images(3))
    torch.testing.assert_close(
        answer.log_probs.cpu(), cascade(images(3))[:, 0].log_softmax(1), rtol=1e-3, atol=1e-3
    )
