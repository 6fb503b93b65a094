"""What pages name exists: files, headings, modules, functions, tests. Records have one form."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest

import offramp
from offramp._core.errors import MissingExtraError

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
RECORDS = sorted(ROOT.glob("docs/adr/[0-9]*.md"))
HEADINGS = ["Status", "Context", "Decision", "Consequences", "What would change our mind"]
TESTS = r"tests/[\w/]+\.py(?:::\w+)?"


def text_of(path):
    return path.read_text(encoding="utf-8")


def name_of(path):
    return str(path.relative_to(ROOT))


def anchors(path):
    """Headings as a page's own links name them."""
    titles = re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def resolves(page, target):
    """True if a link of a page leads to something in the repository."""
    where, _, anchor = target.partition("#")
    file = (page.parent / where).resolve() if where else page
    if not file.exists() or not file.is_relative_to(ROOT):
        return False
    return not anchor or anchor in anchors(file)


def exists(name):
    """True if a dotted name is a module, or something in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except MissingExtraError:
            return True  # it is there; what is in it only its package can tell
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            fields = getattr(found, "__dataclass_fields__", {})
            if not hasattr(found, part) and part not in fields:
                return False
            found = getattr(found, part, None)
        return True
    return False


def test_the_pages_are_there():
    names = {name_of(path) for path in PAGES}
    wanted = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/glossary.md", "docs/theory.md"}
    assert wanted <= names
    assert len(RECORDS) >= 11


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_inside_the_repository_resolve(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    for target in targets:
        if not target.startswith("https://"):
            assert resolves(page, target), f"{name_of(page)} links to {target}"


@pytest.mark.parametrize(
    "target", ["nowhere.md", "LICENSE#mit", "#no-such-heading", "../README.md"]
)
def test_the_check_of_links_can_fail(target):
    assert not resolves(ROOT / "README.md", target)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_of_modules_and_functions_exist(page):
    for name in set(re.findall(r"\bofframp(?:\.\w+)+", text_of(page))):
        assert exists(name), f"{name_of(page)} names {name}"


@pytest.mark.parametrize(
    "name", ["offramp.fitt", "offramp.evaluation.Frontier.worst", "offramp.x.y"]
)
def test_the_check_of_names_can_fail(name):
    assert not exists(name)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tests_that_are_named_exist(page):
    for named in re.findall(TESTS, text_of(page)):
        file, _, function = named.partition("::")
        assert (ROOT / file).is_file(), named
        assert f"def {function}" in text_of(ROOT / file), named


def test_each_formula_has_a_function_and_a_test():
    rows = re.findall(r"^\|(.+)\|$", text_of(ROOT / "docs" / "theory.md"), re.MULTILINE)
    cells = [re.split(r"(?<!\\)\|", row) for row in rows]
    formulas = [row for row in cells if "`" in row[2]]
    assert len(formulas) >= 25
    for row in formulas:
        assert re.search(r"`offramp(\.\w+)+`", row[2]), row
        assert re.search(TESTS, row[3]), row


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_record_has_its_six_headings_and_fits_a_page(record):
    text = text_of(record)
    assert re.match(rf"# {record.name[:4]} \S", text)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    status = text.partition("## Status\n\n")[2]
    assert re.match(r"(Accepted\b|Proposed\b|Superseded by \[\d{4}\])", status)
    assert len(text.splitlines()) <= 80
    bodies = re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]
    assert all(body.strip() for body in bodies)


def test_records_are_numbered_without_gaps_and_listed():
    assert [path.name[:4] for path in RECORDS] == [f"{k:04d}" for k in range(1, len(RECORDS) + 1)]
    index = text_of(ROOT / "docs" / "adr" / "README.md")
    for path in RECORDS:
        title = text_of(path).partition("\n")[0].removeprefix(f"# {path.name[:4]} ")
        assert f"| [{path.name[:4]}]({path.name}) | {title} |" in index


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        linked = re.findall(r"\]\(([^)\s#]+\.md)", text_of(page))
        found = {(page.parent / target).resolve() for target in linked if "://" not in target}
        waiting += [target for target in found if target not in reached]
    assert set(PAGES) <= reached


def test_the_glossary_has_the_shape_letters_of_the_code():
    code = "\n".join(text_of(path) for path in (ROOT / "src").rglob("*.py"))
    used = {
        letter
        for shape in re.findall(r'\w\[(?:Tensor|np\.ndarray), "([^"]+)"\]', code)
        for letter in shape.split()
        if len(letter) == 1 and letter.isalpha()
    }
    known = set(re.findall(r"^\| `(\w)` \|", text_of(ROOT / "docs" / "glossary.md"), re.MULTILINE))
    assert {"n", "s", "c"} <= used & known
    assert used <= known, "a letter that the glossary does not explain"


def test_the_licence_is_the_one_that_the_package_names():
    licence = text_of(ROOT / "LICENSE")
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert re.search(r"Copyright \d{4} The offramp authors", licence)
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    assert project["license"] == "Apache-2.0"


def test_versions_and_pythons_agree():
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    assert project["version"] == offramp.__version__
    assert offramp.__version__ in text_of(ROOT / "CHANGELOG.md")
    assert "## [Unreleased]" in text_of(ROOT / "CHANGELOG.md")
    assert f"\nversion: {offramp.__version__}\n" in text_of(ROOT / "CITATION.cff")
    versions = re.findall(r"3\.\d+", " ".join(project["classifiers"]))
    stated = text_of(ROOT / "docs" / "start" / "install.md")
    for page in (text_of(ROOT / "README.md"), stated):
        assert all(version in page for version in versions)
    for extra in project["optional-dependencies"]:
        assert f"`{extra}`" in stated, f"the page about installing does not name the extra {extra}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_picture_says_what_it_shows(page):
    for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text_of(page)):
        assert len(words.split()) >= 5, f"{target} has no description"
    assert "<img" not in text_of(page)
