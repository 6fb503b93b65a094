"""The built site: links that lead somewhere, pictures with words, no other host, a phone's width.

It is built strictly, in a folder of its own. `make test` has what needs no build: the pages from
outside docs/, and what becomes of docstrings. The rest is slow: `make test-docs`.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from support.browser import CHROMIUM, browser

ROOT = Path(__file__).parents[2]
PHONE = 360
IN_PIXELS = """(() => {
  const wide = document.documentElement.scrollWidth;
  const other = performance.getEntriesByType("resource").map((entry) => entry.name);
  return JSON.stringify([wide, other.filter((name) => !name.startsWith(location.origin))]);
})()"""
ASK = """(() => {
  if (!document.querySelector("#__search").checked) document.querySelector("#__search").click();
  const field = document.querySelector("[data-md-component=search-query]");
  field.value = WORDS;
  for (const kind of ["focus", "input", "keyup"]) field.dispatchEvent(new Event(kind));
})()"""
ANSWER = """
[...document.querySelectorAll("a.md-search-result__link")].map((link) => link.href).join(" ")
"""

needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocstrings") is None, reason="needs the extra docs: make test-docs"
)


class Page(HTMLParser):
    """What one page links to, loads and shows."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids, self.silent = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        self.ids |= {held.get("id"), held.get("name")}
        if tag == "a" and "href" in held:
            self.links.append(held["href"])
        if tag == "link" and held.get("rel") not in ("next", "prev", "canonical"):
            self.loads.append(held["href"])
        if "src" in held:
            self.loads.append(held["src"])
        if tag == "img" and not (held.get("alt") or "").strip():
            self.silent.append(held.get("src"))


def htmls(site):
    """All pages but those of the playground, which need files that another command fetches."""
    return sorted(p for p in site.rglob("*.html") if p.relative_to(site).parts[0] != "playground")


def broken(site):
    """Links and files that a page names and the site lacks."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in htmls(site)}
    for path, page in pages.items():
        if path.name == "404.html":  # its addresses begin at the root of a server
            continue
        for target in (*page.links, *page.loads):
            where, anchor = urldefrag(unquote(target))
            if re.match(r"[a-z]+:", target):
                continue
            led = (path.parent / where).resolve() if where else path
            led = led / "index.html" if led.is_dir() else led
            if not led.is_file() or (anchor and led in pages and anchor not in pages[led].ids):
                yield path.relative_to(site), target


def foreign(site):
    """What would be loaded from another host."""
    for path in site.rglob("*.html"):
        for target in Page(path.read_text(encoding="utf-8")).loads:
            if re.match(r"(?:[a-z]+:)?//", target):
                yield path.relative_to(site), target
    loaded = re.compile(r"(?:url\(|@import\s*)[\"']?((?:https?:)?//[^\"')]+)")
    for path in site.rglob("*.css"):
        for target in loaded.findall(path.read_text(encoding="utf-8")):
            yield path.relative_to(site), target


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@needs_mkdocs
def test_every_page_is_in_it(site):
    built = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    pages = {
        str(path.relative_to(ROOT / "docs").with_suffix(".html")).replace("README", "index")
        for path in ROOT.glob("docs/**/*.md")
    }
    assert pages <= built
    assert {"index.html", "changelog.html", "reference/evaluation.html"} <= built


@pytest.mark.slow
@needs_mkdocs
def test_no_link_is_broken_and_every_picture_has_words(site):
    assert list(broken(site)) == []
    for path in site.rglob("*.html"):
        assert Page(path.read_text(encoding="utf-8")).silent == [], path.name


@pytest.mark.slow
@needs_mkdocs
def test_nothing_is_loaded_from_another_host(site):
    assert list(foreign(site)) == []


@pytest.mark.slow
@needs_mkdocs
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_pages_fit_a_phone_and_ask_no_other_host(site, tmp_path):
    with served(site) as url, browser(tmp_path) as page:
        for path in htmls(site):
            where = f"{url}/{path.relative_to(site)}"
            page.open(where, width=PHONE)
            told = page.js(IN_PIXELS)
            wide, other = json.loads(told)
            assert wide <= PHONE, f"{path.name} is {wide} pixels wide"
            assert other == [], path.name
        assert page.errors == []


@pytest.mark.slow
@needs_mkdocs
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("way", ["folder", "server"])
def test_a_search_leads_to_pages_from_a_folder_and_from_a_server(way, site, tmp_path):
    with served(site) as url, browser(tmp_path) as page:
        root = site.as_uri() if way == "folder" else url
        for k, words in enumerate(("certificate", "curl", "Resize", "early exits")):
            page.open(f"{root}/{('index.html', 'how-to/serve.html')[k % 2]}")
            page.js(ASK.replace("WORDS", json.dumps(words)))
            for led in page.until(ANSWER).split():
                file = unquote(urldefrag(led.removeprefix(f"{root}/"))[0].partition("?")[0])
                assert (site / file).is_file(), led
        assert page.errors == []


class served:
    """The site on a port of this machine."""

    def __init__(self, site):
        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def test_the_checks_of_pages_can_fail(tmp_path):
    (tmp_path / "a.html").write_text(
        '<img src="b.svg"><a href="no.html">x</a><a href="#here">y</a><i id="there"></i>'
        '<script src="https://cdn.example/x.js"></script><a href="a.html#there">z</a>'
    )
    (tmp_path / "a.css").write_text("@import 'https://fonts.example/a.css';")
    where = Path("a.html")
    assert set(broken(tmp_path)) == {(where, "b.svg"), (where, "no.html"), (where, "#here")}
    assert len(list(foreign(tmp_path))) == 2
    assert Page((tmp_path / "a.html").read_text()).silent == ["b.svg"]


@needs_mkdocs
def test_examples_of_docstrings_are_code():
    space = {"__name__": "site_docstrings"}
    exec((ROOT / "tools" / "site_docstrings.py").read_text(encoding="utf-8"), space)
    found = space["fenced"]("Adds.\n\n>>> 1 + 1\n2\n\nMore.\n>>> 3\n3")
    assert found == "Adds.\n\n```python\n>>> 1 + 1\n2\n```\n\nMore.\n```python\n>>> 3\n3\n```"
    assert space["fenced"]("Nothing.") == "Nothing."


@needs_mkdocs
def test_a_page_of_another_command_is_in_the_navigation_once_it_is_there(tmp_path):
    space = {"__name__": "site_pages", "__file__": str(ROOT / "tools" / "site_pages.py")}
    exec((ROOT / "tools" / "site_pages.py").read_text(encoding="utf-8"), space)
    space["ROOT"] = tmp_path
    nav = ["index.md", {"Playground": "playground/index.html"}]
    assert space["_filled"](nav) == ["index.md"]
    (tmp_path / "docs" / "playground").mkdir(parents=True)
    (tmp_path / "docs" / "playground" / "index.html").touch()
    assert space["_filled"](nav) == nav


def test_the_navigation_has_every_page():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"- (?:[\w ]+: )?(\S+\.md)$", text, re.MULTILINE))
    folders = re.findall(r"- (?:[\w ]+: )?(\S+/)$", text, re.MULTILINE)
    for path in ROOT.glob("docs/**/*.md"):
        name = str(path.relative_to(ROOT / "docs"))
        assert name in listed or name.startswith(tuple(folders)), f"mkdocs.yml leaves out {name}"
