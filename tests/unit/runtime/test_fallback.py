import torch

from offramp._core.outputs import StageOutput, finite_rows
from offramp.runtime.fallback import Fallback


def test_rows_with_anything_that_is_not_finite_are_found():
    huge = torch.finfo(torch.float32).max  # a sum of two overflows, but each is finite
    rows = torch.tensor(
        [[1.0, 2.0], [huge, huge], [torch.nan, 0], [0, torch.inf], [-torch.inf, 0], [1, torch.nan]]
    )
    assert finite_rows(rows).tolist() == [True, True, False, False, False, False]
    assert finite_rows(rows[:0]).tolist() == []


def said_of(log_probs):
    return StageOutput(classes=log_probs.shape[1], logits=log_probs)


def update_reference(state, finite, combined, before, alone):
    """One example: (answer, valid, nonfinite)."""
    answer, valid, nonfinite = state
    if nonfinite == 0 and before is not None:
        answer, valid = before, True
    if finite:
        return (combined if nonfinite == 0 else alone), True, nonfinite
    return answer, valid, nonfinite + 1


def test_updates_equal_one_example_at_a_time():
    generator = torch.Generator().manual_seed(0)
    n, c = 40, 3
    kept = Fallback.none(n, said_of(torch.zeros(1, c)))
    states = [(torch.full((c,), torch.nan), False, 0)] * n
    before = None
    for step in range(6):
        rows = None if step % 2 else torch.arange(0, n, 2)
        m = n if rows is None else len(rows)
        finite = torch.rand(m, generator=generator) < 0.6
        combined, alone, last = (torch.randn(m, c, generator=generator) for _ in range(3))
        old = last if before else None
        part = kept.take(rows).after(
            finite,
            combined=said_of(combined),
            before=None if old is None else said_of(old),
            alone=said_of(alone),
            why=torch.full((m,), 2, dtype=torch.int8),
        )
        kept = kept.put(rows, part)
        somebody = slice(None) if rows is None else rows
        assert torch.equal(kept.why[somebody] == 2, ~finite)
        for at, i in enumerate(range(n) if rows is None else rows.tolist()):
            old = None if before is None else last[at]
            states[i] = update_reference(states[i], bool(finite[at]), combined[at], old, alone[at])
        before = True
    assert torch.equal(
        kept.said.logits.nan_to_num(9.0), torch.stack([s[0] for s in states]).nan_to_num(9.0)
    )
    assert kept.valid.tolist() == [s[1] for s in states]
    assert kept.nonfinite.tolist() == [s[2] for s in states]
    some = torch.tensor([3, 4])
    assert torch.equal(kept.take(some).nonfinite, kept.nonfinite[some])
