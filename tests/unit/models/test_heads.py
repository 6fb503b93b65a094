"""Exit heads: shapes, what fits what, and the record that builds one again."""

import pytest
import torch
from torch import nn

from offramp._core.errors import InputError, UnknownNameError
from offramp.models import (
    HEADS,
    LayerShape,
    ModelSpec,
    PooledHead,
    TokenPool,
    build,
    conv_head,
    gap_linear,
    head_arguments,
    make_head,
    pool_mlp,
    token_linear,
)
from offramp.models.fitting import FAMILIES


def maps(*sides):
    return LayerShape(sides, layout="channels_first")


def tokens(*sides, pooling="first"):
    return LayerShape(sides, layout="channels_last", pooling=pooling)


FITTING = {
    "vector_linear": [(6,)],
    "gap_linear": [(4, 8, 8), (4, 1, 1), (4, 3, 7), maps(4, 9), maps(4, 3, 5, 2)],
    "pool_mlp": [(4, 8, 8), (4, 2, 5), maps(4, 9), maps(4, 3, 5, 2)],
    "conv_head": [(4, 8, 8), (4, 1, 1), (4, 3, 7), maps(4, 9), maps(4, 3, 5, 2)],
    "token_linear": [tokens(9, 6), tokens(1, 6)],
}
CASES = [(kind, shape) for kind, shapes in FITTING.items() for shape in shapes]


def tensor(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_head_is_in_the_sweep_and_says_what_it_reads():
    assert set(FITTING) == set(HEADS) == set(FAMILIES)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_a_head_made_for_a_shape_gives_logits_of_each_example_alone(kind, shape):
    head = make_head(kind, shape, 3)
    assert not head.training
    x = tensor(5, *shape)
    logits = head(x)
    assert logits.shape == (5, 3)
    torch.testing.assert_close(logits[2:3], head(x[2:3]))
    assert not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_a_spec_builds_the_same_head_again(kind, shape):
    made = make_head(kind, shape, 3, seed=7)
    again = build(ModelSpec(name=kind, arguments=head_arguments(kind, shape, 3, seed=7)))
    other = make_head(kind, shape, 3, seed=8)
    assert not again.training
    x = tensor(5, *shape)
    assert torch.equal(made(x), again(x))
    assert not torch.equal(made(x), other(x))


def test_gap_linear_is_a_linear_map_of_the_mean_over_places():
    head = gap_linear(4, 3)
    x, means = tensor(5, 4, 3, 7), nn.BatchNorm1d(4, affine=False).eval()
    linear = head.classify[1]
    torch.testing.assert_close(head(x), linear(means(x.mean(dim=(2, 3)))))
    moved = x.flatten(2).flip(2).reshape(x.shape)
    torch.testing.assert_close(head(x), head(moved))


def test_pool_mlp_sees_in_which_quarter_something_is():
    head = pool_mlp(1, 3, hidden=8)
    corner, other = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    corner[..., 0, 0] = other[..., 3, 3] = 1
    assert not torch.allclose(head(corner), head(other))
    within = torch.zeros(1, 1, 4, 4)
    within[..., 1, 1] = 1
    torch.testing.assert_close(head(corner), head(within))
    assert torch.allclose(gap_linear(1, 3)(corner), gap_linear(1, 3)(other))


def test_conv_head_halves_the_map_before_it_averages():
    head = conv_head(4, 3, filters=5)
    assert head.classify[0](tensor(2, 4, 8, 8)).shape == (2, 5, 4, 4)


def test_conv_head_stacks_convolutions_behind_a_pooling():
    head = conv_head(4, 3, filters=(5, 7), pool=2)
    x = tensor(2, 4, 16, 16)
    assert head.pool(x).shape == (2, 4, 8, 8)
    assert head.classify[:6](head.pool(x)).shape == (2, 7, 2, 2)
    assert torch.equal(conv_head(4, 3, filters=(6,))(x), conv_head(4, 3, filters=6)(x))


def test_token_linear_reads_the_class_token_or_the_mean():
    x = tensor(5, 4, 6)
    first, mean = token_linear(6, 3), token_linear(6, 3, pooling="mean")
    changed = x.clone()
    changed[:, 1:] += 1
    assert torch.equal(first(x), first(changed))
    assert not torch.allclose(mean(x), mean(changed))
    torch.testing.assert_close(TokenPool("mean")(x), x.mean(dim=1))


def test_tokens_may_stand_in_rows_and_columns():
    x = tensor(5, 4, 4, 6)
    head = make_head("token_linear", (4, 4, 6), 3, pooling="mean")
    torch.testing.assert_close(head(x), head(x.flatten(1, 2)))


@pytest.mark.parametrize(
    ("kind", "shape", "said"),
    [
        ("gap_linear", tokens(197, 768), r"is of tokens.* there are: 'token_linear'\."),
        ("gap_linear", (197, 768), r"layout='channels_first' .*or layout='channels_last'"),
        ("token_linear", (197, 768), r"layout='channels_first' .*or layout='channels_last'"),
        ("token_linear", maps(16, 64), r"is of maps.* there are: 'gap_linear', 'pool_mlp', 'conv"),
        ("token_linear", (64,), r"got shape \(64,\) .* there are: 'vector_linear'\."),
        ("vector_linear", (4, 8, 8), r"there are: 'gap_linear', 'pool_mlp', 'conv_head'"),
        ("conv_head", (4, 2, 8, 8, 8), r"got shape \(4, 2, 8, 8, 8\) .*a module of your own"),
        ("gap_linear", (), r"got shape \(\) .*a module of your own"),
        ("gap_linear", (16, 0, 4), r"at least one element, got \(16, 0, 4\)"),
        ("pool_mlp", (16, 4, 1), r"grid must be at most .* 1 in shape \(16, 4, 1\), got 2"),
        ("token_linear", (4, 4, 6), r"\(4, 4, 6\) have no first or last one; pass pooling='mean'"),
    ],
)
def test_a_head_that_does_not_fit_names_those_that_do(kind, shape, said):
    with pytest.raises(InputError, match=said):
        make_head(kind, shape, 3)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("gap_linear", {"hidden": 3}, r"gap_linear refuses \{.*'hidden': 3\}"),
        ("pool_mlp", {"hidden": 0}, "hidden must be an integer of at least 1, got 0"),
        ("conv_head", {"filters": -1}, "filters must be an integer of at least 1, got -1"),
        ("conv_head", {"filters": ()}, r"filters must have at least one entry, got \(\)"),
        ("conv_head", {"pool": 9}, r"pool must be at most the smaller side of the map, 8 .*got 9"),
    ],
)
def test_options_are_checked(kind, options, said):
    with pytest.raises(InputError, match=said):
        make_head(kind, (4, 8, 8), 3, **options)


def test_an_unknown_pooling_gets_the_nearest():
    with pytest.raises(InputError, match=r"pooling must be one of .* got 'means'.* 'mean'"):
        token_linear(6, 3, pooling="means")


def test_the_last_and_the_mean_leave_padding_out_on_either_side():
    x, real = tensor(3, 4, 6), torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
    broken = torch.where(real[:, :, None] == 1, x, torch.nan)  # what stands at padding is nobody's
    last = token_linear(6, 3, pooling="last", mask="mask").pool
    mean = token_linear(6, 3, pooling="mean", mask="mask").pool
    assert torch.equal(last(broken, real), x[[0, 1, 2], [1, 3, 3]])
    each = [x[0, :2].mean(dim=0), x[1, 2:].mean(dim=0), x[2].mean(dim=0)]
    torch.testing.assert_close(mean(broken, real), torch.stack(each))
    assert torch.equal(mean(broken, real.bool()), mean(broken, real.float()))
    ids = torch.where(real == 1, 5, 7)
    assert torch.equal(
        token_linear(6, 3, pooling="last", mask="ids", pad=7).pool(x, ids), last(x, real)
    )


def test_without_a_mask_every_token_is_real():
    x = tensor(3, 4, 6)
    assert torch.equal(TokenPool("last")(x), x[:, -1])
    nobody = torch.zeros(3, 4, dtype=torch.int64)
    assert TokenPool("mean", mask="mask")(x, nobody).isfinite().all()
    assert torch.equal(TokenPool("last", mask="mask")(x, nobody), x[:, 0])


def test_a_mask_for_the_first_token_is_refused():
    with pytest.raises(InputError, match="mask must be None where pooling is 'first'"):
        token_linear(6, 3, mask="attention_mask")


def test_the_seed_draws_the_weights_of_every_convolution():
    for axes in (1, 2, 3):
        one, other = (conv_head(4, 3, axes=axes, seed=1).state_dict() for _ in range(2))
        assert all(map(torch.equal, one.values(), other.values()))


def test_an_unknown_head_gets_the_nearest():
    with pytest.raises(UnknownNameError, match=r"no head 'gap_liner'. Did you mean 'gap_linear'"):
        make_head("gap_liner", (4, 8, 8), 3)


def test_what_can_be_kept_on_disk_is_split_into_pooling_and_rest():
    for kind in HEADS:
        assert isinstance(make_head(kind, FITTING[kind][0], 3), PooledHead)
        assert not list(make_head(kind, FITTING[kind][0], 3).pool.parameters())
