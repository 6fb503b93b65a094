"""A configuration that `init` writes is read back, and takes what somebody has to a report."""

import csv
import io
import shlex
import sys

import numpy as np
import pytest
from PIL import Image

from offramp import load
from offramp.project.config.config import load_config
from offramp.project.init import CASES, Wish
from offramp.serve.inputs import Inputs
from offramp.trace import load_trace, make_trace
from support.openai_server import StandIn


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands_of(text):
    return [line[4:] for line in text.splitlines() if line.startswith("#   offramp ")]


def goes_on(run, told, **changes):
    """Run the commands that follow; promises may be refused at such sizes, which is 3."""
    config = load_config(told)
    text = told.read_text()
    for before, after in changes.values():
        assert before in text
        text = text.replace(before, after)
    told.write_text(text)
    for command in commands_of(text):
        words = shlex.split(command)
        assert words[0] == "offramp"
        found = run(*words[1:])
        assert found.code in (0, 3), found.err
    return config


CASE_OF = {"nets": "networks", "one": "exits", "said": "answers", "llm": "services"}
CASE_OF |= {"cats": "class-exits"}


def test_each_case_is_tried_below():
    assert set(CASE_OF.values()) == set(CASES)


def test_several_networks(run, here, project):
    found = run(
        *("init", "nets.toml", "--case", "networks", "--max-drop", 0.05),
        *("--model", "small_cnn width=2 depth=2", "--weights", project / "small.safetensors"),
        *("--model", "small_cnn width=8 depth=3", "--weights", project / "large.safetensors"),
    )
    assert found.code == 0, found.err
    config = goes_on(run, here / "nets.toml", quick=('["threshold", "learned"]', '["threshold"]'))
    assert [stage.name for stage in config.stage] == ["small", "large"]
    assert config.stage[1].arguments == {"width": 8, "depth": 3}
    assert (here / "bundle" / "manifest.json").is_file()
    assert (here / "runs" / "nets" / "report.html").is_file()


@pytest.mark.slow  # heads are trained; the variant in `make test` is that of several networks
def test_one_network_with_exits(run, here, one_network):
    found = run(
        *("init", "one.toml", "--case", "exits", "--model", "small_cnn width=8 depth=4"),
        *("--weights", one_network / "net.safetensors"),
    )
    assert found.code == 0, found.err
    goes_on(run, here / "one.toml", quick=("epochs = 30", "epochs = 2"))
    assert (here / "runs" / "one" / "report.html").is_file()


@pytest.mark.slow  # branches are trained; as above
def test_exits_of_classes(run, here, one_network):
    found = run(
        *("init", "cats.toml", "--case", "class-exits", "--model", "small_cnn width=8 depth=4"),
        *("--weights", one_network / "net.safetensors", "--classes", "3", "--max-drop", 0.02),
    )
    assert found.code == 0, found.err
    goes_on(run, here / "cats.toml", quick=("epochs = 40", "epochs = 2"))
    assert (here / "runs" / "cats" / "class_exits.html").is_file()


@pytest.mark.parametrize(
    ("classes", "together"), [(["--classes", "3"], False), (["--classes", "3,8"], True), ([], True)]
)
def test_exits_of_several_classes_go_into_one_bundle_together(run, here, classes, together):
    found = run("init", "--case", "class-exits", "--model", "small_cnn", *classes)
    assert found.code == 0, found.err
    first, _ = commands_of((here / "run.toml").read_text())
    assert first.endswith("--together") is together
    assert first in found.out


@pytest.mark.parametrize("form", ["predictions", "logits", "probabilities"])
def test_recorded_answers(run, here, form):
    made = make_trace(600, stages=2, classes=4, seed=0)
    arrays = {"labels": made.labels.numpy()}
    for k, name in enumerate(("local", "paid")):
        scores = made.logits[:, k]
        shares = scores.softmax(dim=1)
        given = {"logits": scores, "probabilities": shares, "predictions": scores.argmax(dim=1)}
        arrays[name] = given[form].numpy()
        if form == "predictions":
            arrays[f"{name}_confidence"] = shares.max(dim=1).values.numpy()
    (here / "data").mkdir()
    np.savez(here / "data" / "answers.npz", **arrays)
    found = run(
        *("init", "said.toml", "--case", "answers", "--path", "data/answers.npz"),
        *("--cost", "local=0.1,paid=1.5"),
    )
    assert found.code == 0, found.err
    config = goes_on(run, here / "said.toml", quick=('["threshold", "learned"]', '["threshold"]'))
    assert getattr(config.answers, form) == {"local": "local", "paid": "paid"}
    trace = load_trace(here / "runs" / "said" / "record.trace")
    assert trace.stages == ("local", "paid")
    assert trace.costs.unit == "usd"
    assert trace.accuracy(1) == made.accuracy(1)
    assert len(trace.subset("calibrate")) == 210


def test_services(run, here, monkeypatch):
    monkeypatch.setenv("TINY_KEY", "sk-1")
    with (here / "texts.csv").open("w", newline="") as file:
        rows = [[f"{('poor', 'good')[k % 2]} {k}", ("bad", "good")[k % 2]] for k in range(80)]
        csv.writer(file).writerows([["text", "label"], *rows])
    with StandIn(key="sk-1", say=lambda text: (text.split()[-2], 0.9)) as server:
        found = run(
            *("init", "llm.toml", "--case", "services", "--path", "texts.csv"),
            *("--url", server.url, "--key-env", "TINY_KEY"),
            *("--model", "cheap", "--price", "1,1", "--model", "dear", "--price", "20,20"),
        )
        assert found.code == 0, found.err
        goes_on(run, here / "llm.toml", quick=('["threshold", "learned"]', '["threshold"]'))
        assert server.spent > 0


def test_networks_without_weights_are_trained_by_what_follows(run, here):
    found = run("init", *("--model", "small_cnn width=2", "--model", "small_cnn width=8"))
    assert found.code == 0, found.err
    assert "`offramp train joint` trains these networks" in " ".join(found.out.split())
    text = (here / "run.toml").read_text()
    first, _ = commands_of(text)
    assert first == "offramp train joint --config run.toml --bundle bundle"
    assert "If you have weights, name them (weights = ...)" in text.replace("\n# ", " ")


@pytest.mark.slow  # they are trained; the variant in `make test` is that of several networks
def test_the_training_that_follows_leads_to_a_bundle(run, here):
    run("init", *("--model", "small_cnn width=2", "--model", "small_cnn width=8"))
    text = (here / "run.toml").read_text()
    first, report = commands_of(text)
    (here / "run.toml").write_text(f"{text}\n[joint]\nepochs = 2\ncost_weights = [0.1]\n")
    for command in (first, report):
        done = run(*shlex.split(command)[1:])
        assert done.code in (0, 3), done.err
        assert "random weights" not in done.err
    assert (here / "bundle" / "manifest.json").is_file()


def test_a_first_training_that_cannot_be_is_not_told_to_begin_anew(run, here):
    np.savez(here / "rows.npz", images=np.zeros((40, 4), np.float32), labels=np.arange(40) % 2)
    models = ("--model", "small_cnn width=2", "--model", "small_cnn width=8")
    assert run("init", "--data", "npz", "--path", "rows.npz", *models).code == 0
    found = run("train", "joint", "--config", "run.toml")
    assert found.code == 2
    assert "--restart" not in found.err


@pytest.mark.parametrize("case", ["exits", "class-exits"])
def test_one_network_without_weights_is_told_where_some_come_from(run, here, case):
    found = run("init", "--case", case, "--model", "small_cnn")
    for said in (" ".join(found.out.split()), (here / "run.toml").read_text().replace("\n# ", " ")):
        assert "offramp.train.train_classifier" in said
        assert 'weights = "net.safetensors"' in said


@pytest.mark.parametrize("more", [["--weights", "net.safetensors"], ["--model", "my.nets:make"]])
def test_what_brings_weights_or_may_is_recorded(run, here, one_network, more):
    (here / "net.safetensors").write_bytes((one_network / "net.safetensors").read_bytes())
    times = 2 if "--weights" in more else 1
    found = run("init", *["--model", "small_cnn width=8 depth=4"] * times, *more * times)
    assert found.code == 0, found.err
    assert "train" not in (here / "run.toml").read_text().partition("[data]")[0]
    assert "No weights were named" not in found.out


def test_questions_are_asked_where_somebody_answers(run, here, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("exits\n\nsmall_cnn width=3\n\n"))
    found = run("init", "--ask")
    assert found.code == 0, found.err
    config = load_config(here / "run.toml")
    assert config.network.arguments == {"width": 3}
    assert config.data.kind == "digits"
    assert "What do you have" in found.err


def test_nothing_is_overwritten(run, here):
    (here / "run.toml").write_text("mine")
    found = run("init")
    assert found.code == 2
    assert "offramp init run-2.toml" in found.err
    assert (here / "run.toml").read_text() == "mine"


def test_a_name_that_is_no_utf8_is_refused(run, here):
    found = run("init", "caf\udce9.toml")
    assert found.code == 2
    assert r"must be its name and the paths in it; got ['caf\\xe9.toml']" in found.err
    assert list(here.iterdir()) == []


def test_an_interrupted_question_ends_as_any_interrupt(run, here, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))  # as at Ctrl+C, typer aborts
    assert run("init", "--ask").code == 130
    assert list(here.iterdir()) == []


def test_a_folder_is_not_the_file_and_one_in_it_is_named(run, here):
    (here / "mine").mkdir()
    found = run("init", "mine")
    assert found.code == 2
    assert "offramp init mine/run.toml" in found.err
    assert list((here / "mine").iterdir()) == []


def test_networks_on_a_folder_of_images_read_its_files_also_when_served(run, here):
    noise = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (here / "photos" / name).mkdir(parents=True)
        for k in range(8):
            pixels = noise.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(here / "photos" / name / f"{k}.png")
    model = "small_cnn width=2 depth=2 classes=2"
    found = run(
        *("init", "nets.toml", "--data", "folder", "--path", "photos"),
        *("--model", f"{model} in_channels=3", "--model", model),
    )
    assert found.code == 0, found.err
    told = here / "nets.toml"
    told.write_text(told.read_text().replace("size = 224", "size = 16"))
    found = run("record", "--config", "nets.toml")
    assert found.code == 2
    assert "A network cannot run on the examples" in found.err
    assert "to have 1 channels" in found.err
    told.write_text(told.read_text().replace("classes = 2 }", "classes = 2, in_channels = 3 }"))
    found = run("record", "--config", "nets.toml")
    assert found.code == 0, found.err
    assert "stage 'small' (small_cnn) has random weights" in found.err
    assert "stage 'large' (small_cnn) has random weights" in found.err
    found = run("fit", "--config", "nets.toml", "--bundle", "bundle")
    assert found.code in (0, 3), found.err
    assert Inputs(load(here / "bundle"), 10**6).kind == "image"


def test_networks_for_a_folder_of_images_have_its_classes_and_colors(run, here):
    for name in ("cats", "dogs", "eels", ".hidden"):
        (here / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(here / "photos" / name / "a.png")
    found = run("init", "--data", "folder", "--path", "photos")
    assert found.code == 0, found.err
    for stage in load_config(here / "run.toml").stage:
        assert (stage.arguments["classes"], stage.arguments["in_channels"]) == (3, 3)


def test_texts_go_to_classifiers_where_no_model_is_named(run, here):
    rows = [f"{('poor', 'good')[k % 2]} thing {k},{k % 2}" for k in range(40)]
    (here / "texts.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    found = run("init", "--data", "texts", "--path", "texts.csv")
    assert found.code == 0, found.err
    assert [command.split()[1] for command in commands_of((here / "run.toml").read_text())] == [
        *("train", "record", "fit", "report")
    ]
    assert run("train", "--config", "run.toml").code == 0
    found = run("record", "--config", "run.toml")
    assert found.code == 0, found.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--case", "network"], "did you mean"),
        (["--case", "exits", "--model", "a", "--model", "b"], "exits needs one model"),
        (["--case", "networks", "--model", "resnet20"], "at least 2 models, cheapest first"),
        (["--weights", "no.safetensors"], "--weights must be given once for each of the 2 models"),
        (["--case", "exits", "--weights", "no.safetensors"], "there is no such file or folder"),
        (["--case", "exits", "--model", "small_cnn width"], "a name and argument=value"),
        (["--case", "answers"], "answers need an npz file"),
        (["--case", "answers", "--path", "x.npz", "--cost", "a"], "costs: a=0,b=1"),
        (["--case", "services", "--model", "a", "--model", "b"], "services need an address"),
        (["--max-drop", "2"], "max_drop"),
        (["--data", "fodler", "--path", "."], "did you mean"),
        (["--data", "folder"], "need a --path, where they lie, got None"),
        (["--data", "digits", "--path", "."], "need no --path"),
        (["--case", "exits", "--model", "nosuch"], "There is no model 'nosuch'"),
        (["--case", "exits", "--model", "small_cnn 'width=2"], "No closing quotation"),
        (["--case", "exits", "--model", " "], "must be a name and argument=value, got ' '"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(run, here, given, said):
    found = run("init", *given)
    assert found.code == 2
    assert said.lower() in found.err.lower()
    assert "Traceback" not in found.err
    assert list(here.iterdir()) == []


def test_arrays_that_are_missing_are_named(run, here):
    np.savez(here / "answers.npz", labels=np.zeros(3, int), local=np.zeros(3, int))
    found = run("init", "--case", "answers", "--path", "answers.npz", "--cost", "local=0,paid=1")
    assert found.code == 2
    assert "must hold an array 'paid'; it holds ['labels', 'local']" in found.err


def test_a_wish_says_what_it_lacks():
    with pytest.raises(ValueError, match="must be given once for each of the 2 models"):
        Wish(case="services", models=("a", "b"), prices=((1.0, 2.0),), url="http://localhost")
