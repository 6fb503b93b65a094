"""The server answers as the model by itself, for policies of all kinds, whoever asks meanwhile."""

import threading

import pytest
import torch

from offramp._core.costs import Costs
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.serve import model as served_model
from offramp.stages import Cascade
from offramp.testing import random_policy
from support.served import NAMES, SECONDS, cascade_of, inputs_of, running

KINDS = [{"combine": how} for how in ("last", "mean", "log_linear")] * 4


@pytest.fixture(scope="module")
def models():
    two = cascade_of()
    stages = [*two, *(stage.named(f"more-{stage.name}") for stage in cascade_of())]
    cascade = Cascade(stages, class_names=NAMES)
    costs = Costs.simple("flops", [1.0, 2.0, 3.0, 4.0])
    found = {}
    for seed, kind in enumerate(KINDS):
        policy = random_policy(cascade.topology, seed=seed, classes=3, **kind)
        last = cascade.topology.names[policy.topology.active[-1]]
        candidate = Candidate(policy=policy, method="random", reference=last)
        found[f"m{seed}"] = Adaptive(cascade, candidate, costs=costs)
    return found


def test_any_interleaving_is_answered_as_each_request_by_itself(models, tmp_path, monkeypatch):
    monkeypatch.setattr(served_model, "load_resumed", lambda path, **_: models[path.name])
    answers = {}
    with running({name: tmp_path / name for name in models}) as client:

        def ask(start):
            for k in range(start, 60, 4):
                name, x = f"m{k % len(models)}", inputs_of(1 + 17 * (k % 7), seed=k)
                asked = {"parameters": {"priority": 1 + k % 9}}
                answers[k] = name, x, client.infer(x, name, id=f"r{k}", **asked)

        threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
    assert len(answers) == 60
    for k, (name, x, outputs) in answers.items():
        names = [f"r{k}"] if len(x) == 1 else [f"r{k}/{row}" for row in range(len(x))]
        answer = models[name](x, names)
        assert outputs["label"] == answer.labels.tolist()
        assert outputs["stage"] == [answer.stage_names[s] for s in answer.stage.tolist()]
        assert outputs["reason"] == answer.reasons
        assert outputs["cost"] == answer.cost.tolist()
        said = torch.tensor(outputs["probabilities"]).reshape(len(x), -1)
        torch.testing.assert_close(said, answer.log_probs.exp(), rtol=1e-4, atol=1e-6)
    assert len({stage for _, _, outputs in answers.values() for stage in outputs["stage"]}) > 2
