"""What mkdocs does not know of this repository; a hook of mkdocs.yml.

- README, CHANGELOG and others at the root are pages of the site too. Their links, and links of
  pages in docs/ that lead out of it, are led to where the site has the same thing: a page, a
  program shown as a page, or a copy of the file.
- The reference: one page for each public package, of the names in its `__all__`, so that a new
  name or package needs nothing here. Names in code spans of other pages lead there.
- An entry of `nav` that ends with "/" stands for all pages of that folder that `nav` does not
  list. "Playground" is left out as long as docs/ does not have it.
"""

import importlib
import inspect
import pkgutil
import re
from functools import cache
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

import offramp
from offramp._core.errors import MissingExtraError

ROOT = Path(__file__).parents[1]
#: Pages of the site that lie outside docs/.
PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "conduct.md": "CODE_OF_CONDUCT.md",
    "security.md": "SECURITY.md",
}
HIDDEN = {"cli"}  # it explains itself
CORE = "offramp._core"
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
NAME = re.compile(r"(?<!\[)`(offramp(?:\.\w+)+)`(?!\])")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the folders of the navigation."""
    config.nav = _filled(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, the reference, and what pages link to."""
    for uri, path in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for uri, text in _reference().items():
        files.append(File.generated(config, uri, content=text))
    linked: set[str] = set()
    for page in files.documentation_pages():
        for _, target, _ in LINK.findall(FENCE.sub("", page.content_string)):
            found = _in_repository(page.src_uri, target.partition("#")[0])
            linked |= {found} if found else set()
    for path in sorted(linked - set(PAGES.values())):
        if path.startswith("docs/"):
            continue
        if path.endswith(".py"):
            code = (ROOT / path).read_text(encoding="utf-8")
            text = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n````python\n{code}````\n"
            held = {"content": text}
        else:
            held = {"abs_src_path": str(ROOT / path)}
        beside = InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, _uri(path), inclusion=beside, **held))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to where the site has what they name."""
    here = page.file.src_uri
    if here.startswith("how-to/") and markdown.startswith("# How to "):
        title = markdown.partition("\n")[0].removeprefix("# How to ")
        page.title = title[0].upper() + title[1:]

    def led(match: re.Match[str]) -> str:
        where, mark, anchor = match[2].partition("#")
        found = _in_repository(here, where)
        if not found:
            return match[0]
        target = relpath(_uri(found), str(PurePosixPath(here).parent))
        return f"{match[1]}{target}{mark}{anchor}{match[3]}"

    def named(match: re.Match[str]) -> str:
        home = _home(match[1])
        return f"[`{match[1]}`][{home}]" if home else match[0]

    parts = FENCE.split(markdown)
    texts = [
        part if k % 2 else LINK.sub(led, NAME.sub(named, part)) for k, part in enumerate(parts)
    ]
    return "".join(texts)


def _in_repository(here: str, target: str) -> str | None:
    """The path in the repository of what a page links to, or None: it is elsewhere, or is here."""
    if not target or ":" in target:
        return None
    source = PAGES.get(here) or f"docs/{here}"
    path = normpath(str(PurePosixPath(source).parent / target))
    return path if (ROOT / path).is_file() else None


def _uri(path: str) -> str:
    """Where the site has a file of the repository."""
    for uri, of_page in PAGES.items():
        if path == of_page:
            return uri
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path}.md" if path.endswith(".py") else f"source/{path}"


def _filled(nav: Any, listed: Any = None) -> Any:
    """The navigation with folders replaced by those of their pages that it does not list."""
    listed = str(nav) if listed is None else listed
    if isinstance(nav, dict):
        return {title: _filled(entry, listed) for title, entry in nav.items()}
    if isinstance(nav, list):
        filled = [_filled(entry, listed) for entry in nav if _is_there(entry)]
        return [page for part in filled for page in (part if isinstance(part, list) else [part])]
    if not nav.endswith("/"):
        return nav
    if nav == "reference/":
        return sorted(_reference(), key=lambda uri: (uri != "reference/index.md", uri))
    pages = sorted(path.name for path in (ROOT / "docs" / nav).glob("*.md"))
    pages = [f"{nav}{name}" for name in sorted(pages, key=lambda name: (name != "README.md", name))]
    return [page for page in pages if f"'{page}'" not in listed]


def _is_there(entry: Any) -> bool:
    values = entry.values() if isinstance(entry, dict) else ()
    html = [value for value in values if isinstance(value, str) and value.endswith(".html")]
    return all((ROOT / "docs" / value).is_file() for value in html)


@cache
def _packages() -> dict[str, Any]:
    """The public packages and modules, by name."""
    found = {}
    for module in pkgutil.iter_modules(offramp.__path__):
        if not module.name.startswith("_") and module.name not in HIDDEN:
            try:
                found[module.name] = importlib.import_module(f"offramp.{module.name}")
            except MissingExtraError:
                found[module.name] = None  # its names are read from the source
    return found


def _home(name: str) -> str | None:
    """Where a public thing is defined, which is its name in the reference; None if it is not in it.

    A package may have a module of the same name as a function of it, so its own name will not do.
    """
    package, _, last = name.rpartition(".")
    if package == "offramp":
        home = offramp._HOME.get(last)
        module = importlib.import_module(home) if home and not last.startswith("_") else None
    else:
        module = _packages().get(package.removeprefix("offramp."))
        home = package
    if module is None or not (last in getattr(module, "__all__", ()) or home.startswith(CORE)):
        return None
    thing = inspect.unwrap(getattr(module, last))
    if inspect.isclass(thing) or inspect.isfunction(thing):
        return f"{thing.__module__}.{thing.__qualname__}"
    return f"{home}.{last}"


def _reference() -> dict[str, str]:
    """The pages of the reference: where they lie, and their text."""
    names = [name for name in sorted(offramp._HOME) if not name.startswith("_")]
    session = "\n".join(
        f"| [`offramp.{name}`][{_home(f'offramp.{name}')}] | {_first(getattr(offramp, name))} |"
        for name in names
    )
    packages = _packages()
    listed = "\n".join(
        f"| [`offramp.{name}`]({name}.md) | {_first(module) if module else ''} |"
        for name, module in packages.items()
    )
    own = [f"offramp.{name}" for name in names if offramp._HOME[name].startswith(CORE)]
    index = (
        "# Reference\n\nWhat `import offramp` gives, which is what a session needs:\n\n"
        f"| name | |\n|---|---|\n{session}\n\n"
        "All public packages, with every name in their `__all__`. Shapes are written as in the "
        "[glossary](../glossary.md).\n\n"
        f"| package | |\n|---|---|\n{listed}\n\n"
        f"## Names of offramp alone\n\n{_entries(own, level=3)}"
    )
    pages = {"reference/index.md": index}
    shown = _shown()
    for name, module in packages.items():
        text = f"# offramp.{name}\n\n::: offramp.{name}\n"
        members = [f"offramp.{name}.{last}" for last in sorted(getattr(module, "__all__", ()))]
        if members:
            own = [member for member in members if shown[_home(member)] == name]
            others = [member for member in members if member not in own]
            text += f"    options:\n      members: false\n\n{_entries(own)}"
            links = ", ".join(f"[`{m.rpartition('.')[2]}`][{_home(m)}]" for m in others)
            text += f"\n## From other packages\n\n{links}.\n" if others else ""
        pages[f"reference/{name}.md"] = text
    return pages


def _shown() -> dict[str | None, str]:
    """On whose page each name is explained: where it is defined, if it is public there."""
    found: dict[str | None, str] = {}
    for package, module in _packages().items():
        for last in getattr(module, "__all__", ()):
            home = _home(f"offramp.{package}.{last}") or ""
            if home.startswith(f"offramp.{package}.") or home not in found:
                found[home] = package
    return found


def _entries(names: list[str], level: int = 2) -> str:
    """What mkdocstrings reads: one entry for each name."""
    options = (
        f"    options:\n      heading_level: {level}\n      show_root_heading: true\n"
        "      show_root_toc_entry: true\n"
    )
    return "\n".join(f"::: {_home(name)}\n{options}" for name in names)


def _first(thing: Any) -> str:
    """The first line of what a docstring says."""
    return (thing.__doc__ or "").strip().partition("\n")[0].replace("|", "\\|")
