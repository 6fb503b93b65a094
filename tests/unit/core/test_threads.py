import threading
from collections.abc import Iterator

import pytest
import torch

from offramp._core.threads import one_thread


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_blocks_nest_and_end_with_what_was_there_before():
    with one_thread():
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_a_failure_ends_the_limit():
    with pytest.raises(ValueError, match="of mine"), one_thread():
        raise ValueError("of mine")
    assert torch.get_num_threads() == 3


def test_a_block_that_ends_later_than_another_threads_ends_as_it_began():
    inside, leave = threading.Event(), threading.Event()
    seen: list[int] = []

    def other() -> None:
        with one_thread():
            seen.append(torch.get_num_threads())
            inside.set()
            leave.wait(30)
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    with one_thread():
        thread.start()
        assert inside.wait(30)
    assert torch.get_num_threads() == 3
    leave.set()
    thread.join()
    assert seen == [1, 3]
    assert torch.get_num_threads() == 3
