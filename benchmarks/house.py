"""The house itself: how far a batch walks, what a deployed process loads, how long the files are.

`modules_of_a_batch` and `classes_of_a_batch` count what `Adaptive.forward` goes through, where the
code stands that runs (`sys.setprofile`), for a batch of 8 through two linear stages and one
threshold. `modules_behind_a_bundle` is what `import offramp.bundle` loads in a fresh process, and
`learn_modules_behind_a_bundle` those of them that only learning needs: 0. Lines are those of `src`,
blank ones left out of code, docstrings and comments. `--root` measures another checkout.
"""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from harness import parser, report

RUN = ("_core", "models", "stages", "adapters", "policy", "backends", "runtime", "bundle", "serve")

_BATCH = """
import json, sys, torch, offramp
from offramp.policy import Feature, Linear, Node, Policy
torch.manual_seed(0)
cascade = offramp.Cascade.from_models({"a": torch.nn.Linear(4, 3), "b": torch.nn.Linear(4, 3)})
rule = Linear.threshold(Feature("max_prob", 0), 0.6)
policy = Policy(cascade.topology, {(0,): Node(rule)})
model = offramp.Adaptive(cascade, policy)
x = torch.randn(8, 4)
model(x); model(x)
modules, classes = set(), set()
def see(frame, event, _):
    if event != "call":
        return
    name = frame.f_globals.get("__name__", "")
    if name.startswith("offramp"):
        modules.add(name)
        own = frame.f_code.co_qualname if hasattr(frame.f_code, "co_qualname") else ""
        first, _, second = own.partition(".")
        if first == "__create_fn__":  # what makes an object of a dataclass
            classes.add((name, type(frame.f_locals["self"]).__name__))
        elif second and not second.startswith("<locals>"):  # not a comprehension of a function
            classes.add((name, first))
sys.setprofile(see); model(x); sys.setprofile(None)
print(json.dumps([sorted(modules), sorted(c for _, c in classes)]))
"""

_LOADED = "import sys, offramp.bundle; print(*(m for m in sys.modules if m.startswith('offramp')))"


def walked(root: Path) -> dict[str, Any]:
    """Modules and classes on the way of one batch."""
    modules, classes = json.loads(_python(_BATCH, root))
    return {
        "modules_of_a_batch": len(modules),
        "classes_of_a_batch": len(classes),
        "the_modules": modules,
        "the_classes": classes,
    }


def loaded(root: Path) -> dict[str, int]:
    """What a process that only answers loads."""
    names = _python(_LOADED, root).split()
    layers = [name.split(".")[1] for name in names if "." in name]
    return {
        "modules_behind_a_bundle": len(names),
        "learn_modules_behind_a_bundle": sum(layer not in RUN for layer in layers),
    }


def lines(root: Path) -> dict[str, Any]:
    """Lines by kind, of all and of each wing, and the longest file."""
    wings: dict[str, Counter[str]] = {"run": Counter(), "learn": Counter()}
    longest = (0, "")
    for path in sorted((root / "src" / "offramp").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        inside = path.relative_to(root / "src" / "offramp")
        counted = _kinds(text)
        wings["run" if inside.parts[0] in RUN else "learn"] += counted
        longest = max(longest, (counted["lines"], str(inside)))
    both = wings["run"] + wings["learn"]
    return {
        "lines": both["lines"],
        "share_code": round(both["code"] / both["lines"], 3),
        "share_docstrings": round(both["docstring"] / both["lines"], 3),
        "wings": {
            name: {
                "lines": found["lines"],
                "share_code": round(found["code"] / found["lines"], 3),
                "share_docstrings": round(found["docstring"] / found["lines"], 3),
            }
            for name, found in wings.items()
        },
        "longest_file": longest[1],
        "longest_file_lines": longest[0],
    }


def named(root: Path) -> dict[str, int]:
    """How many names a reader may meet."""
    public = set()
    for path in (root / "src" / "offramp").rglob("__init__.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                public |= {e.value for e in ast.walk(node) if isinstance(e, ast.Constant)}
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOME":
                public |= {ast.literal_eval(key) for key in getattr(node.value, "keys", ())}
    glossary = (root / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^\*\*.+?\*\* \u2014", glossary, re.MULTILINE)
    return {"public_names": len(public), "glossary_terms": len(terms)}


def _kinds(text: str) -> Counter[str]:
    every = text.splitlines()
    inside: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                inside |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    found = Counter(lines=len(every), docstring=len(inside))
    for number, line in enumerate(every, 1):
        if number in inside or not line.strip():
            continue
        found["comment" if line.strip().startswith("#") else "code"] += 1
    return found


def _python(code: str, root: Path) -> str:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin"},
    ).stdout


if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    arguments.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    given = arguments.parse_args()
    root = given.root.resolve()
    report(given, {**walked(root), **loaded(root), **lines(root), **named(root)})
