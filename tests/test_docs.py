"""Checks that citations and names in docs/method.md, docs/architecture.md and CONTRIBUTING.md exist."""

import importlib.util
import re
from pathlib import Path

import pytest

from dupr_tf.config import Config, field_rows

ROOT = Path(__file__).resolve().parents[1]
DECISIONS, CONTRIBUTING = ROOT / "docs" / "method.md", ROOT / "CONTRIBUTING.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
SOURCES = [path for folder in ("dupr_tf", "tests", "configs") for path in sorted((ROOT / folder).rglob("*.*"))]
FIELD = re.compile(rf"`((?:{'|'.join(Config.model_fields)})\.[a-z_]+)[`:]")
CODE = re.compile(r"`((?:dupr_tf|tests|benchmarks|docs|configs|scripts)/[\w./]+)`")


def test_cited_sections_of_the_method_exist():
    sections = set(re.findall(r"^## (.+)$", DECISIONS.read_text(encoding="utf-8"), re.M))
    texts = (path.read_text(encoding="utf-8") for path in SOURCES if path.suffix in (".py", ".yaml"))
    cited = {name for text in texts for name in re.findall(r"docs/method\.md, (\w+)\)", text)}
    assert {"Views", "Step"} <= cited <= sections


def test_fields_that_the_method_names_exist():
    named = set(FIELD.findall(DECISIONS.read_text(encoding="utf-8")))
    assert len(named) > 20 and named <= {row[0] for row in field_rows()}


@pytest.mark.parametrize("page", [DECISIONS, CONTRIBUTING, ARCHITECTURE], ids=lambda page: page.name)
def test_paths_in_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = {path for path in CODE.findall(text) if "NAME" not in path}
    paths |= {f"{page.parent.relative_to(ROOT)}/{link}" for link in re.findall(r"\]\(([\w./]+\.md)\)", text)}
    assert paths and [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_path_of_a_photo_enters_each_file_once():
    text = ARCHITECTURE.read_text(encoding="utf-8")
    table = re.findall(r"^\| (\d+) \| `dupr_tf/([\w./]+)` \|", text, re.M)
    drawing = re.findall(r" (\d+) ([\w/]+\.py)", text)
    assert table == drawing and [int(number) for number, _ in table] == list(range(1, len(table) + 1))
    assert len({file for _, file in table}) == len(table)


def test_folders_of_the_package_are_described():
    package = ROOT / "dupr_tf"
    rooms = {path.name + "/" for path in package.iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.name for path in package.glob("[a-z]*.py")}
    table = ARCHITECTURE.read_text(encoding="utf-8").split("## The way")[0]
    assert rooms - set(re.findall(r"`([\w./]+)`", table)) == set()


@pytest.mark.parametrize("page", ["commands.md", "configuration.md"])
def test_generated_reference_is_up_to_date(page):
    spec = importlib.util.spec_from_file_location("write_reference", ROOT / "scripts" / "write_reference.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert script.START in text and script.END in text
    assert script.with_generated(text, script.GENERATED[page]()) == text, "run scripts/write_reference.py"
