"""What lies in deploy/: commands that exist, with their options, and addresses that there are."""

import inspect
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from offramp.cli.app import app
from offramp.serve.openapi import description

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = ["Dockerfile", "offramp.service", "kubernetes.yaml", "kserve.yaml"]


def test_an_image_is_made_of_what_the_project_is_built_of_and_nothing_else():
    root = DEPLOY.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lines = [one for one in (root / ".dockerignore").read_text().splitlines() if one[:1] != "#"]
    built = {"pyproject.toml", "src", project["readme"], *project["license-files"]}
    assert lines[0] == "*"
    assert {one.removeprefix("!") for one in lines[1:]} == built


def words_of(text):
    return shlex.split(re.sub(r"[\[\],]", " ", text))


@pytest.mark.parametrize("name", FILES)
def test_options_and_addresses_exist(name):
    text = "\n".join(
        line
        for line in (DEPLOY / name).read_text().splitlines()
        if not line.lstrip().startswith(("#", "COPY", "RUN", "&&", "HEALTHCHECK"))
    )
    (command,) = [c for key, c in typer.main.get_command(app).commands.items() if key == "serve"]
    known = {option for parameter in command.params for option in parameter.opts}
    used = re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
    assert used
    assert set(used) <= known
    for path in re.findall(r"/v2/[a-z/]+|/metrics", text):
        assert path in description(["net"], token=False)["paths"]


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kserve.yaml"])
def test_manifests_are_yaml_and_give_no_rights(name):
    yaml = pytest.importorskip("yaml")
    documents = list(yaml.safe_load_all((DEPLOY / name).read_text()))
    assert documents[0]["kind"] in ("Deployment", "ServingRuntime")
    spec = documents[0]["spec"]
    pod = spec["template"]["spec"] if "template" in spec else spec
    held = pod["containers"][0]["securityContext"]
    assert held["readOnlyRootFilesystem"]
    assert not held["allowPrivilegeEscalation"]
    assert held["capabilities"] == {"drop": ["ALL"]}
    assert {**pod.get("securityContext", {}), **held}["runAsNonRoot"]


def test_the_manifest_of_ray_names_what_there_is():
    yaml = pytest.importorskip("yaml")
    from offramp.serve import ray as application

    spec = yaml.safe_load((DEPLOY / "ray" / "rayservice.yaml").read_text())["spec"]
    (found,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    module, _, name = found["import_path"].partition(":")
    assert module == application.__name__
    known = inspect.signature(application.build_app).parameters
    assert callable(getattr(application, name))
    assert set(found["args"]) <= set(known)
    assert found["deployments"] == [{"name": "offramp", "user_config": {"gear": None}}]
    for group in [spec["rayClusterConfig"]["headGroupSpec"]]:
        held = group["template"]["spec"]["containers"][0]["securityContext"]
        assert not held["allowPrivilegeEscalation"]
