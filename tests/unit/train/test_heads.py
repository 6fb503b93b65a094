"""Training of exit heads: the backbone stays, heads do not disturb each other, runs go on."""

import copy
import json
from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from torch import nn

import offramp
from offramp._core.errors import FileFormatError, InputError, UnknownNameError
from offramp.data import digits
from offramp.evaluation import replay
from offramp.models import cifar_resnet, make_head, small_cnn
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Normalize, cut_points
from offramp.train import train_classifier, train_heads
from offramp.train.features import backbone_digest
from offramp.train.learner import Learner
from offramp.train.state import generator_for

AT = ("features.0", "features.1", "features.2")
SCALE = Normalize(1 / 16)


class Dropping(nn.Module):
    """A head of the user's own, with batch-norm and random numbers."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(channels), nn.Dropout(0.3)
        self.linear = make_head("gap_linear", (channels, 2, 2), 10, seed=5)
        self.eval()

    def forward(self, x):
        return {"logits": self.linear(self.drop(self.norm(x)))}


@pytest.fixture(scope="module")
def examples():
    return digits().split_into({"train": 300, "test": 200}, seed=0, stratified=True)


@pytest.fixture(scope="module")
def part(examples):
    return examples.subset("train")


def backbone():
    return small_cnn(width=4, depth=4).eval()


def heads_of(kind, at=AT):
    shapes = {p.name: p.shape for p in cut_points(backbone(), torch.zeros(1, 1, 8, 8))}
    if kind == "own":
        return {name: Dropping(shapes[name][0]) for name in at}
    return {name: make_head(kind, shapes[name], 10, seed=1) for name in at}


def fresh(kind):
    """Untrained heads of one kind on a backbone; copied, since cutting takes longer."""
    return copy.deepcopy(prototype(kind))


@lru_cache
def prototype(kind):
    return exits(heads_of(kind))


def exits(heads, net=None):
    net = backbone() if net is None else net
    example = torch.zeros(1, 1, 8, 8)
    return Cascade.from_network(net, list(heads), head=heads, example=example, transform=SCALE)


def trained(cascade, part, **options):
    options = {"epochs": 2, "seed": 0, "batch_size": 50, "progress": False, **options}
    return train_heads(cascade, part, **options)


def state(cascade, name):
    head = cascade.stage(name).head
    return {k: v.clone() for k, v in head.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def shifted(batch, generator):
    return batch.roll(int(torch.randint(2, (1,), generator=generator)), dims=3)


class Stopping:
    """An augmentation that is interrupted, or gives NaN, at one of its calls."""

    __qualname__ = shifted.__qualname__

    def __init__(self, at, *, nan=False):
        self.calls, self.at, self.nan = 0, at, nan

    def __call__(self, batch, generator):
        self.calls += 1
        if self.calls != self.at:
            return shifted(batch, generator)
        if self.nan:
            return batch.float() * torch.nan
        raise KeyboardInterrupt


# What changes, and what does not


def test_only_the_heads_change(part):
    cascade = fresh("conv_head")
    net = cascade.stage("last").module
    before, modules = backbone_digest(cascade), copy.deepcopy(net.state_dict())
    heads = {name: state(cascade, name) for name in AT}
    history = trained(cascade, part)
    assert backbone_digest(cascade) == before
    assert same(net.state_dict(), modules)
    assert not any(p.grad is not None for p in net.parameters())
    for name in AT:
        now = state(cascade, name)
        changed = {k for k in now if not torch.equal(now[k], heads[name][k])}
        assert changed == set(now), "weights and batch-norm statistics of the head are trained"
        assert len(history[name].losses) == len(history[name].accuracies) == 2
    assert not any(module.training for module in cascade.modules())


def test_the_checksum_of_the_backbone_sees_a_statistic_that_moved():
    cascade = fresh("gap_linear")
    before = backbone_digest(cascade)
    norms = [m for m in cascade.stage(AT[0]).module.modules() if isinstance(m, nn.BatchNorm2d)]
    norms[0].running_mean[0] += 1e-6
    assert backbone_digest(cascade) != before


def test_training_side_by_side_is_training_each_alone(part):
    kinds = ("gap_linear", "own", "conv_head")
    groups = {name: {kind: heads_of(kind)[name] for kind in kinds} for name in AT}
    together = exits(copy.deepcopy(groups))
    names = [name for name in together.topology.names if name != "last"]
    assert len(names) == len(AT) * len(kinds)
    all_history = trained(together, part)
    for name in names[::4]:  # each point and each kind once
        alone = exits(copy.deepcopy(groups))
        history = trained(alone, part, heads=[name])
        assert list(history) == [name]
        assert history[name] == all_history[name]
        assert same(state(alone, name), state(together, name)), name


def test_one_optimizer_on_the_sum_of_the_losses_gives_the_same_weights(part):
    """The slow twin: the uncut network, read in the middle, and one loss."""
    cascade = fresh("conv_head")
    heads, net = copy.deepcopy(heads_of("conv_head")), backbone()
    plan = {"epochs": 1, "seed": 3, "batch_size": 50, "learning_rate": 0.02, "weight_decay": 0.1}
    trained(cascade, part, **plan, validation=part)
    optimizer = torch.optim.AdamW(nn.ModuleList(heads.values()).parameters(), weight_decay=0.1)
    draws = generator_for(3, "order", 0)
    order = torch.randperm(300, generator=draws)
    for head in heads.values():
        head.train()
    for step in range(6):
        rows, loss = order[50 * step : 50 * step + 50], 0.0
        x = SCALE(part.inputs[rows])
        for layer, head in zip(net.features, heads.values(), strict=False):
            with torch.no_grad():
                x = layer(x)
            loss = loss + nn.functional.cross_entropy(head(x), part.labels[rows])
        rise = min(1.0, (step + 1) / 1.0)
        optimizer.param_groups[0]["lr"] = (
            0.02 * rise * (1 + torch.tensor(torch.pi * step / 6, dtype=torch.float64).cos()) / 2
        ).item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, head in heads.items():
        for k, v in state(cascade, name).items():
            torch.testing.assert_close(v, head.state_dict()[k], rtol=1e-4, atol=1e-5)


def test_each_segment_runs_once_a_batch_and_none_behind_the_last_head(part):
    net = backbone()
    heads = {name: {"a": heads_of("own")[name], "b": heads_of("pool_mlp")[name]} for name in AT}
    cascade = exits(heads, net)
    calls = [0, 0, 0, 0]
    for k, layer in enumerate(net.features):
        layer[0].register_forward_hook(
            lambda *_, k=k: calls.__setitem__(
                k, calls[k] + 1
            )  # convolutions are called as they are
        )
    trained(cascade, part, epochs=1, validation=0.2, heads=["features.1/a", "features.1/b"])
    batches = 4 + 2  # of 240 to train on the rest of a batch is left out; 60 to judge on
    assert calls == [batches + 1, batches + 1, 0, 0]  # one more to see what the heads give


def test_the_global_random_state_is_left_alone(part):
    cascade = fresh("own")
    before = torch.get_rng_state()
    trained(cascade, part, epochs=1, augment=shifted)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_decides_and_nothing_else(part):
    one, again, other = (fresh("own") for _ in range(3))
    trained(one, part, augment=shifted)
    torch.rand(7)
    trained(again, part, augment=shifted)
    trained(other, part, augment=shifted, seed=1)
    assert same(state(one, AT[0]), state(again, AT[0]))
    assert not same(state(one, AT[0]), state(other, AT[0]))


def test_augmentation_changes_what_is_trained_on_and_not_what_is_judged_on(part):
    seen = []

    def noted(batch, generator):
        seen.append(len(batch))
        return shifted(batch, generator)

    plain, augmented = fresh("gap_linear"), fresh("gap_linear")
    trained(plain, part, epochs=1)
    trained(augmented, part, epochs=1, augment=noted)
    assert seen == [50] * 5
    assert not same(state(plain, AT[0]), state(augmented, AT[0]))
    with pytest.raises(InputError, match="as many examples as it gets, 50, got 49"):
        trained(plain, part, augment=lambda batch, generator: batch[:-1])


def test_heads_at_a_cut_that_carries_several_tensors_read_the_first(part):
    images = part.inputs.float().expand(-1, 3, -1, -1)
    small = type(part)(
        inputs=images, labels=part.labels, class_names=part.class_names, ids=part.ids
    )
    net = cifar_resnet(8, width=0.25).eval()
    point = next(p for p in cut_points(net, images[:1]) if len(p.live) > 1)
    head = make_head("gap_linear", point.shape, 10)
    cascade = Cascade.from_network(net, [point.name], head={point.name: head}, example=images[:1])
    history = trained(cascade, small, epochs=3)[point.name]
    assert history.losses[-1] < history.losses[0]


def test_inputs_made_on_access_give_the_same(part):
    class Lazy:
        def __init__(self, inputs):
            self.inputs = inputs

        def __len__(self):
            return len(self.inputs)

        def __getitem__(self, position):
            return self.inputs[position]

        def take(self, positions):
            return Lazy(self.inputs[positions])

        def identity(self):
            return b"digits"

    one, other = fresh("gap_linear"), fresh("gap_linear")
    lazy = type(part)(
        inputs=Lazy(part.inputs), labels=part.labels, class_names=part.class_names, ids=part.ids
    )
    trained(one, part)
    trained(other, lazy)
    assert same(state(one, AT[0]), state(other, AT[0]))


# Which weights are kept


def test_a_head_keeps_its_best_weights_and_stops_when_it_has_waited(examples, part):
    judged = examples.subset("test").take(torch.arange(60))
    cascade = fresh("pool_mlp")
    history = trained(cascade, part, epochs=30, validation=judged, patience=3, learning_rate=0.05)
    with torch.inference_mode():
        right = cascade(judged.inputs).argmax(dim=2) == judged.labels[:, None]
    for k, name in enumerate(AT):
        found = history[name]
        assert found.accuracy == max(found.accuracies) == found.accuracies[found.best_epoch - 1]
        assert found.accuracy == pytest.approx(right[:, k].double().mean().item())
        assert len(found.accuracies) == min(30, found.best_epoch + 3)
    assert len({len(history[name].accuracies) for name in AT}) > 1, "each stops by itself"
    assert min(len(history[name].accuracies) for name in AT) < 30


def test_of_equal_accuracies_the_lower_loss_is_better():
    learner = Learner(nn.Linear(1, 2), weight_decay=0.0)
    kept = []
    for accuracy, loss in [(0.5, 3.0), (0.5, 2.0), (0.5, 2.5), (0.4, 1.0), (0.6, 9.0)]:
        learner.judge(0.0, accuracy, loss)
        kept.append(learner.best_epoch)
    assert kept == [1, 2, 2, 2, 5]
    assert learner.waited() == 0


def test_without_an_epoch_there_is_no_accuracy():
    history = Learner(nn.Linear(1, 2), weight_decay=0.0).history()
    assert history.best_epoch == 0
    assert history.accuracy != history.accuracy


def test_class_weights_move_the_answers(part):
    plain, weighted = exits(heads_of("gap_linear", AT[:1])), exits(heads_of("gap_linear", AT[:1]))
    trained(plain, part, epochs=4)
    trained(weighted, part, epochs=4, class_weights=[50.0] + [1.0] * 9)
    with torch.inference_mode():
        often = [(c(part.inputs)[:, 0].argmax(1) == 0).sum().item() for c in (plain, weighted)]
    assert often[1] > 2 * often[0]


# Interruptions


def test_an_interrupted_training_goes_on_to_the_same_result(part, tmp_path):
    options = {"epochs": 4, "patience": 2, "learning_rate": 0.05}
    whole, broken = fresh("own"), fresh("own")
    wanted = trained(whole, part, augment=shifted, **options)
    options["checkpoint"] = tmp_path / "heads.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(broken, part, augment=Stopping(13), **options)  # in the third of 5-step epochs
    again = fresh("own")  # as a new process would have them
    went_on = Stopping(1000)
    history = trained(again, part, augment=went_on, **options)
    assert went_on.calls <= 10
    assert history == wanted
    for name in AT:
        assert same(state(again, name), state(whole, name))
    finished = Stopping(1)
    assert trained(fresh("own"), part, augment=finished, **options) == wanted
    assert finished.calls == 0


def test_interrupted_heads_have_the_best_weights_so_far(part, tmp_path):
    path, broken = tmp_path / "heads.safetensors", fresh("gap_linear")
    with pytest.raises(KeyboardInterrupt):
        trained(broken, part, augment=Stopping(9), checkpoint=path)  # in the second epoch
    with safe_open(path, framework="pt") as file:
        best = {k: file.get_tensor(f"0.best.{k}") for k in state(broken, AT[0])}
    assert same(state(broken, AT[0]), best)
    assert not same(state(fresh("gap_linear"), AT[0]), best)
    assert not any(module.training for module in broken.modules())


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(part, tmp_path):
    path = tmp_path / "heads.safetensors"
    cascade, options = fresh("own"), {"epochs": 3, "checkpoint": path}
    said = r"head of 'features.0' became nan in epoch 2, with learning_rate=0\.01.*epoch before"
    with pytest.raises(InputError, match=said):
        trained(cascade, part, augment=Stopping(8, nan=True), **options)
    for name in AT:
        assert all(v.isfinite().all() for v in state(cascade, name).values())
    again, whole = fresh("own"), fresh("own")
    went_on = Stopping(1000)
    history = trained(again, part, augment=went_on, **options)
    assert went_on.calls == 10
    assert history == trained(whole, part, augment=shifted, epochs=3)


def test_a_loss_that_is_no_number_at_once_leaves_the_head_as_it_was(part):
    cascade = fresh("gap_linear")
    with pytest.raises(InputError, match="became nan in epoch 1"):
        trained(cascade, part, augment=Stopping(1, nan=True))
    assert same(state(cascade, AT[0]), state(fresh("gap_linear"), AT[0]))


def test_a_checkpoint_is_safetensors_with_json_and_holds_one_optimizer_for_each_head(
    part, tmp_path
):
    path = tmp_path / "heads.safetensors"
    trained(fresh("gap_linear"), part, epochs=1, checkpoint=path)
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        assert json.loads(file.metadata()["offramp"].partition("\n")[0])["facts"]["epochs"] == 1
    averages = [name for name in names if name.endswith("weight.exp_avg")]
    assert {name.partition(".moments.")[0] for name in averages} == {"0", "1", "2"}
    assert {p.name for p in tmp_path.iterdir()} == {path.name}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"epochs": 3}, "epochs"),
        ({"validation": 0.2}, "validation"),
        ({"class_weights": [2.0] * 10}, "class_weights"),
        ({"augment": shifted}, "augment"),
        ({"heads": list(AT[:2])}, "heads"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(part, tmp_path, changed, named):
    path = tmp_path / "heads.safetensors"
    small = part.take(torch.arange(60))
    trained(fresh("gap_linear"), small, epochs=1, checkpoint=path)
    with pytest.raises(InputError, match=f"belongs to a training with other {named}"):
        trained(fresh("gap_linear"), small, **{"epochs": 1, "checkpoint": path, **changed})


def test_a_checkpoint_of_another_backbone_or_other_examples_is_refused(part, tmp_path):
    path = tmp_path / "heads.safetensors"
    small = part.take(torch.arange(60))
    trained(fresh("gap_linear"), small, epochs=1, checkpoint=path)
    other = exits(heads_of("gap_linear"), small_cnn(width=4, depth=4, seed=9).eval())
    with pytest.raises(InputError, match="with other backbone"):
        trained(other, small, epochs=1, checkpoint=path)
    with pytest.raises(InputError, match="with other examples"):
        trained(fresh("gap_linear"), part, epochs=1, checkpoint=path)


def test_a_damaged_checkpoint_is_named(part, tmp_path):
    path = tmp_path / "heads.safetensors"
    small = part.take(torch.arange(60))
    trained(fresh("gap_linear"), small, epochs=1, checkpoint=path)
    good = path.read_bytes()
    for bad in (good[:100], b"", good.replace(b"0.best.head", b"0.bess.head"), b"PK" + good[2:]):
        path.write_bytes(bad.replace(b"0.best", b"0.bess"))
        with pytest.raises(FileFormatError, match=r"heads\.safetensors .*Delete it to train"):
            trained(fresh("gap_linear"), small, epochs=1, checkpoint=path)


# What is refused


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"patience": 0}, "patience must be an integer of at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be an integer of at least 1, got -1"),
        ({"learning_rate": 0.0}, r"learning_rate must be finite and greater than 0, got 0\.0"),
        ({"weight_decay": -1.0}, r"weight_decay must be finite and at least 0, got -1\.0"),
        ({"validation": 1.5}, r"validation must be in \(0, 1\), got 1\.5"),
        ({"validation": 0.999}, "at least 2 examples to train on, got 0 of 300"),
        ({"class_weights": [1.0] * 9}, r"must have 10 entries, .*'features\.0'.* got 9"),
        ({"class_weights": [0.0] * 10}, r"class_weights must be finite .* got 0\.0"),
        ({"checkpoint": "heads.pt"}, r"must end with \.safetensors, got 'heads\.pt'"),
        ({"heads": []}, "at least one stage with a head, got none"),
        ({"cache": "x", "augment": shifted}, "leave out either augment or cache"),
    ],
)
def test_wrong_arguments_are_named(part, wrong, said):
    with pytest.raises(InputError, match=said):
        trained(fresh("gap_linear"), part, **wrong)


def test_a_stage_that_has_no_head_or_does_not_exist_is_named(part):
    for name in ("last", "features.9"):
        with pytest.raises(UnknownNameError, match=f"no stage with a head '{name}'"):
            trained(fresh("gap_linear"), part, heads=[name])


def test_heads_need_weights_of_their_own(part):
    net, shared = backbone(), heads_of("gap_linear", AT[1:])
    nothing = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ZeroPad1d((0, 2)))
    with pytest.raises(InputError, match=r"'features\.1' has no weights to train"):
        trained(exits({"features.1": nothing.eval()}), part)
    twice = {"features.1": shared["features.1"], "features.2": shared["features.1"]}
    with pytest.raises(InputError, match=r"'features\.2' shares weights with .*'features\.1'"):
        trained(exits(twice), part)
    taken = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), net.linear).eval()
    with pytest.raises(InputError, match=r"'features\.1' shares weights with what is not trained"):
        trained(exits({"features.1": taken}, net), part)


def test_a_head_with_too_few_outputs_is_named(part):
    head = make_head("gap_linear", (8, 4, 4), 7)
    net = small_cnn(width=4, depth=4, classes=7).eval()
    with pytest.raises(InputError, match=r"'features\.1' must give at least 10 logits.*got 7"):
        trained(exits({"features.1": head}, net), part)


# From exits to answers


def test_exits_on_digits_from_training_to_answers():
    parts = digits().split_into(
        {"train": 1000, "fit": 397, "calibrate": 400}, seed=0, stratified=True
    )
    net = small_cnn(width=8, depth=5)
    train_classifier(net, parts.subset("train"), epochs=8, seed=0, transform=SCALE, progress=False)
    at = [f"features.{k}" for k in range(4)]
    shapes = {p.name: p.shape for p in cut_points(net, torch.zeros(1, 1, 8, 8))}
    cascade = exits({name: make_head("gap_linear", shapes[name], 10) for name in at}, net)
    history = train_heads(
        cascade, parts.subset("train"), epochs=15, seed=0, batch_size=50, progress=False
    )
    others = parts.take(parts.split > 0)
    trace = offramp.record(cascade, others.loader(100), progress=False)
    accuracy = (trace.logits.argmax(dim=2) == trace.labels[:, None]).double().mean(dim=0).tolist()
    assert accuracy[0] > 0.4
    assert all(b > a + 0.02 for a, b in pairwise(accuracy[:4])), accuracy
    for name, measured in zip(at, accuracy, strict=False):
        assert history[name].accuracy == pytest.approx(measured, abs=0.12)
    frontier = offramp.fit(
        trace, cost_weights=[0.01, 0.03, 0.1], combines=["log_linear"], topologies=[trace.topology]
    )
    chosen = frontier.cheapest(max_drop=0.02, delta=None)
    assert chosen.refused is None
    model = Adaptive(cascade, chosen, costs=trace.costs)
    answer, wanted = model(others.inputs), replay(trace, chosen.candidate.policy)
    assert len(set(answer.stage.tolist())) > 1
    sure = torch.from_numpy(wanted.closest) > 1e-4  # batches of other sizes differ by rounding
    assert sure.double().mean() > 0.95
    assert torch.equal(answer.stage[sure], torch.from_numpy(wanted.last)[sure])
    assert answer.cost.double().mean() < 0.9 * trace.costs.alone(trace.topology, 4)


def test_bfloat16_learns_the_same_to_its_rounding(part):
    exact, rounded = fresh("conv_head"), fresh("conv_head")
    wanted, found = trained(exact, part), trained(rounded, part, bfloat16=True)
    assert found != wanted
    for name, history in wanted.items():
        assert found[name].losses == pytest.approx(history.losses, rel=0.05)
    assert all(p.dtype == torch.float32 for p in rounded.parameters())
