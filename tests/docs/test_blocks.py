"""Every block of code in the documentation does what it says.

Python blocks of a file are run in order, in one namespace and a temporary folder; those that begin
with "# needs offramp[timm]" only where that package is. TOML blocks are valid configurations. Shell
commands exist with all their options, and addresses that curl and JavaScript ask; in a tutorial
commands are run too.
"""

import ast
import gc
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

import offramp.testing  # noqa: F401  so that all registries are there
from offramp._core import registry
from offramp._core.registry import Registry
from offramp.cli import main
from offramp.cli.app import app
from offramp.project.config.config import load_config
from offramp.serve.openapi import description

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line where its text begins."""

    language: str
    text: str
    line: int


def blocks(path, *languages):
    text = path.read_text(encoding="utf-8")
    found = (Block(m[1], m[2], text[: m.start(2)].count("\n") + 1) for m in FENCE.finditer(text))
    return [block for block in found if block.language in languages]


def having(*languages):
    return [
        pytest.param(path, id=str(path.relative_to(ROOT)))
        for path in DOCUMENTS
        if blocks(path, *languages)
    ]


def padded(block):
    """Its code, moved to the line where it stands in the file, so that errors point there."""
    return "\n" * (block.line - 1) + block.text


NEEDS = re.compile(r"# needs (\w+)\[(\w+)\]\n")
PACKAGES = {"timm": "timm", "torchvision": "torchvision", "huggingface": "transformers"}


def can_run(block):
    """False where a block says that it needs a package that is not there."""
    if block.text.startswith("# needs a cluster\n"):  # what it takes of ours has to be there
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("offramp"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), node.module
        return False
    needs = NEEDS.match(block.text)
    if needs is None:
        return True
    package = PACKAGES[needs[2]] if needs[1] == "offramp" else needs[1]
    return importlib.util.find_spec(package) is not None


def commands(text):
    """The commands of a shell block, or of a text with commands indented by four spaces."""
    joined = text.replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in joined.splitlines() if line.strip()]


def test_there_are_blocks_to_run():
    assert ROOT / "README.md" in DOCUMENTS
    assert len(having("python")) >= 5
    assert len(having("bash")) >= 3
    assert len(having("toml")) >= 2


def test_blocks_are_of_languages_that_are_checked():
    for path in DOCUMENTS:
        opened = re.findall(r"^```(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)[::2]
        assert set(opened) <= {"python", "bash", "toml", "javascript"}, path.name


@pytest.fixture
def registries():
    """What a page registers is gone afterwards, for the tests that follow in this process."""
    before = {id(r): (r, dict(r)) for r in gc.get_objects() if type(r) is Registry}
    assert before
    yield
    for held, members in before.values():
        for name in set(held) - set(members):
            del held[name]
    registry._added += 1


@pytest.mark.parametrize("path", having("python"))
def test_blocks_run_in_order_as_a_newcomer_would_run_them(path, tmp_path, monkeypatch, registries):
    """A README is what a newcomer pastes into a fresh interpreter, so it gets one."""
    monkeypatch.chdir(tmp_path)
    if path.name == "README.md":
        text = "\n".join(block.text for block in blocks(path, "python"))
        subprocess.run([sys.executable, "-W", "error", "-c", text], check=True, timeout=300)
        return
    space = {"__name__": "__main__"}
    tutorial = "tutorials" in path.parts
    for block in blocks(path, "python", "toml", "bash") if tutorial else blocks(path, "python"):
        if block.language == "toml":
            name = re.match(r"# (\S+\.toml)\n", block.text)[1]
            Path(name).write_text(block.text, encoding="utf-8")
        elif block.language == "bash":
            for words in commands(block.text):
                assert words[0] == "offramp"
                assert main(words[1:]) == 0, words
        elif can_run(block):
            exec(compile(padded(block), str(path), "exec"), space)


def test_the_example_of_the_readme_is_short():
    (block,) = blocks(ROOT / "README.md", "python")
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 16


@pytest.mark.parametrize("path", having("toml"))
def test_configurations_are_valid(path, tmp_path):
    for block in blocks(path, "toml"):
        value = tomllib.loads(block.text)
        networks = value["stage"] if "stage" in value else [value["network"]]
        wanted = [value["data"].get("path"), *(network.get("weights") for network in networks)]
        for name in filter(None, wanted):
            (tmp_path / name).touch()
        config = tmp_path / "run.toml"
        config.write_text(block.text, encoding="utf-8")
        last = "network" if "class_exits" in value else "stage"  # a design brings its own exits
        found = load_config(config, needs=("data", last))
        assert found.stage or found.network


def test_a_misspelt_key_would_be_found(tmp_path):
    (block, *_) = blocks(ROOT / "docs" / "start" / "shell.md", "toml")
    config = tmp_path / "run.toml"
    config.write_text(block.text.replace("max_drop", "max_dro"), encoding="utf-8")
    with pytest.raises(ValueError, match="Did you mean 'max_drop'"):
        load_config(config)


def check_command(words):
    """Raise unless this is a command that exists, with options that it has."""
    if words[0] == "make":
        targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, f"there is no target {words[1]!r} in the Makefile"
    elif words[0] == "offramp":
        known = typer.main.get_command(app).commands
        assert words[1] in known, f"there is no command {words[1]!r}"
        command = known[words[1]]
        if hasattr(command, "commands") and len(words) > 2:
            assert words[2] in command.commands, f"there is no command {words[1:3]}"
            command = command.commands[words[2]]
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        for word in (w for w in words[2:] if w.startswith("-")):
            assert word.partition("=")[0] in {*options, "--help"}, f"no option {word} in {words}"
    elif words[0] == "curl":
        (address,) = [word for word in words if word.startswith("http://127.0.0.1:8000/")]
        assert is_served(address.removeprefix("http://127.0.0.1:8000")), f"nothing is at {address}"
    elif words[0] == "python":  # of the programs at the root: their options are tried elsewhere
        program = ROOT / words[1]
        assert program.is_file(), f"there is no program {words[1]}"
        known = re.findall(r'"(--[\w-]+)"', program.read_text(encoding="utf-8"))
        for word in (w for w in words[2:] if w.startswith("-")):
            assert word in {*known, "--json", "--out"}, f"no option {word} in {words}"
    elif words[:2] == ["serve", "run"]:  # of Ray
        module, _, name = words[2].partition(":")
        assert callable(getattr(importlib.import_module(module), name))
    else:
        raise AssertionError(f"{words[0]!r} is no command of ours, and neither curl nor serve run")


def is_served(path):
    """Whether there is such an address of a server."""
    known = description(["bundle"], token=False)["paths"]
    return any(re.fullmatch(re.sub(r"\{\w+\}", r"[^/]+", form), path) for form in known)


def installs(words):
    return words[:3] == ["python3", "-m", "venv"] or words[1:4] == ["-m", "pip", "install"]


@pytest.mark.parametrize("path", having("bash"))
def test_commands_in_blocks_exist_with_their_options(path):
    for block in blocks(path, "bash"):
        for words in commands(block.text):
            if not installs(words):
                check_command(words)


@pytest.mark.parametrize("path", having("javascript"))
def test_addresses_in_blocks_of_javascript_exist(path):
    for block in blocks(path, "javascript"):
        addresses = re.findall(r'fetch\("([^"]+)"', block.text)
        assert addresses or "fetch(" not in block.text
        assert all(map(is_served, addresses))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_text_exist(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    inline = re.findall(r"`((?:make|offramp) [a-z][^`]*)`", text)
    indented = re.findall(r"^    ((?:make|offramp) [a-z].*)$", text, re.MULTILINE)
    for command in (*inline, *indented):
        check_command(shlex.split(command))


@pytest.mark.parametrize(
    "wrong",
    [
        "make everything",
        "offramp fitt",
        "offramp fit --max-los 0.1",
        "python benchmarks/peer.py",
        "python benchmarks/peers.py --seed 1",
        "rm file",
    ],
)
def test_the_check_of_commands_can_fail(wrong):
    with pytest.raises(AssertionError):
        check_command(shlex.split(wrong))


def test_what_a_page_installs_is_what_make_installs():
    (install,) = [
        words
        for block in blocks(ROOT / "docs" / "start" / "install.md", "bash")
        for words in commands(block.text)
        if words[1:4] == ["-m", "pip", "install"]
    ]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert " ".join(install[4:]) == "-c constraints.txt -e .[dev]"
    assert "-c constraints.txt -e '.[dev]'" in makefile
