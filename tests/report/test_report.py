from __future__ import annotations

import html.parser
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pretend_runs import baseline_run, train_run
from rich.console import Console

from nsr.config import ReportConfig
from nsr.report.page import markdown_text
from nsr.report.report import build, merged, report

EVIL = (
    '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">\x1b[2J\ud800|`*_[a](javascript:b)'
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (42, 43):
        train_run(folder, "NSR", seed, before=[1, 3] * 12, after=[3, 5] * 12)
        train_run(folder, "PSR", seed, text=EVIL)
    train_run(folder, "W_REINFORCE", lambda_psr=0.3)
    baseline_run(folder)
    return folder


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report."""
    out = tmp_path_factory.mktemp("report")
    report(ReportConfig(folders=(str(folder),), out=str(out)), Console(file=io.StringIO(), width=80))
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_written(made: Path) -> None:
    figures = ("passk", "changes", "frontier", "training", "verdicts", "mechanism", "diversity")
    names = {f"figures/{name}.{ending}" for name in figures for ending in ("png", "svg")}
    assert set(files_of(made)) == {"report.html", "RESULTS.md", *names}


def test_the_same_folders_give_the_same_bytes(folder: Path, made: Path, tmp_path: Path) -> None:
    """Also in another process, elsewhere, and when the folders were copied."""
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    out = tmp_path / "out"
    subprocess.run(
        [sys.executable, "-m", "nsr", "report", str(copy), "--out", str(out)], check=True, capture_output=True
    )
    assert files_of(out) == files_of(made)


def test_no_date_and_no_path_of_this_machine(made: Path, folder: Path) -> None:
    for name, data in files_of(made).items():
        assert not re.search(rb"20\d\d-\d\d-\d\d|dc:date|Software|tEXt", data), name
        assert str(folder).encode() not in data, name


class Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def read_page(made: Path) -> Page:
    page = Page()
    page.feed((made / "report.html").read_text("utf-8"))
    return page


def test_the_page_needs_nothing_else(made: Path) -> None:
    page = read_page(made)
    assert not {"link", "iframe", "object", "img"} & {tag for tag, attrs in page.tags if attrs.get("rel") != "icon"}
    for tag, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "action"):
            value = attrs.get(name)
            assert value is None or value.startswith(("#", "data:,")), (tag, value)
    text = (made / "report.html").read_text("utf-8")
    addresses = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, never fetched
    assert "url(" not in re.sub(r"url\(#", "", text)


def test_ids_are_unique_and_links_lead_to_them(made: Path) -> None:
    page = read_page(made)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs.get("href") or attrs.get("xlink:href") or "" for _, attrs in page.tags]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_only_nsr_has_scripts_in_the_page(made: Path) -> None:
    page = read_page(made)
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert [attrs.get("type") for attrs in scripts] == ["application/json", None]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "default-src 'none'" in (made / "report.html").read_text("utf-8")


def test_figures_take_the_colours_of_the_page(made: Path) -> None:
    text = (made / "report.html").read_text("utf-8")
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--ink)" in drawings or "var(--soft)" in drawings
    assert "var(--c-009e73)" in drawings
    assert not re.search(r"#(?:ffffff|000000|2b2f36|009e73)\b", drawings)
    used = set(re.findall(r"var\(--([\w-]+)\)", text))
    light, dark = re.findall(r":root \{ (--ink.*?) \}", text)
    for theme in (light, dark):
        assert {name for name in used if name.startswith("c-")} <= set(re.findall(r"--([\w-]+):", theme))


def test_the_numbers_are_those_of_the_runs(made: Path) -> None:
    results = (made / "RESULTS.md").read_text("utf-8")
    row = next(line for line in results.splitlines() if line.startswith("| NSR |"))
    assert row.startswith("| NSR | 64 | 50.0% [")
    assert "| **+25.0 [" in row
    assert "| 2 | 4 |" in row
    assert "![Training](figures/training.png)" in results
    assert all((made / name).exists() for name in re.findall(r"\]\((figures/[^)]*)\)", results))
    page = (made / "report.html").read_text("utf-8")
    assert "+25.0</span>" in page


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, where figures do not matter."""
    monkeypatch.setattr("nsr.report.report.write_files", lambda *arguments: [])
    monkeypatch.setattr("nsr.report.page.inline", lambda plot: [])


@pytest.mark.usefixtures("quick")
def test_the_terminal_gets_the_table_and_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "runs")
    (copy / "NSR_seed42" / "environment.json").unlink()
    (copy / "\x1b[31mx").mkdir()
    (copy / "\x1b[31mx" / "metrics.jsonl").touch()
    console = Console(file=io.StringIO(), width=80)
    page = report(ReportConfig(folders=(str(copy),)), console)
    assert page == copy / "report.html"
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "! NSR_seed42: environment.json is missing" in text
    assert r"! \x1b[31mx: config.json is missing" in text
    assert "\x1b" not in text
    assert "50.0%" in text
    assert max(map(len, text.splitlines())) <= 200
    assert "50.0%" in (copy / "RESULTS.md").read_text("utf-8")
    # Made again, it reads its own files as no runs.
    assert report(ReportConfig(folders=(str(copy),)), console) == page


@pytest.mark.usefixtures("quick")
def test_runs_without_an_evaluation_have_a_report_too(tmp_path: Path) -> None:
    path = train_run(tmp_path, "NSR")
    shutil.rmtree(path / "evaluations")
    (path / "done.json").unlink()
    page = report(ReportConfig(folders=(str(path),)), Console(file=io.StringIO(), width=80))
    assert page == path / "report.html"
    text = page.read_text("utf-8")
    assert "No run has an evaluation yet." in text
    assert "NSR_seed42: it is not complete, with 4 of 4 steps so far." in text


@pytest.mark.usefixtures("quick")
def test_one_baseline_alone(tmp_path: Path) -> None:
    baseline_run(tmp_path)
    made = build([tmp_path])
    (plots,) = made.plots
    assert plots["mechanism"] == "No run has mechanism.jsonl, so the mechanism is left out."
    assert plots["frontier"] == "No run was trained, so there is no frontier of accuracy against pass@k."
    text = report(ReportConfig(folders=(str(tmp_path),)), Console(file=io.StringIO())).read_text("utf-8")
    assert "No run has mechanism.jsonl, so the mechanism is left out." in text


@pytest.mark.usefixtures("quick")
def test_where_it_is_written(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "runs")
    shutil.rmtree(copy / "W_REINFORCE_seed42")
    two = ReportConfig(folders=(str(copy / "NSR_seed42"), str(copy / "PSR_seed42")))
    assert report(two, Console(file=io.StringIO())) == copy / "report.html"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="which is a file: give the folder to write to"):
        report(ReportConfig(folders=(str(copy),), out=str(tmp_path / "file")))


def test_markdown_shows_text_as_it_is() -> None:
    assert markdown_text("W_0.1_seed42: a|b *x* <script> [x](javascript:1) ![i](u) _em_") == (
        r"W_0.1_seed42: a\|b \*x\* \<script\> [x]\(javascript:1) \![i]\(u) \_em\_"
    )
    assert markdown_text("1 - C(n-c, k) [-1.0, +2.0]") == "1 - C(n-c, k) [-1.0, +2.0]"


def test_a_report_needs_no_torch() -> None:
    code = "import sys, nsr.report.report; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_same_sentence_about_many_runs_is_said_once() -> None:
    told = [f"run{number}: its cat is gone." for number in range(5)] + ["a: x: y.", "b: x: y.", "All is well."]
    assert merged(told) == ["run0, run1 and 3 more: its cat is gone.", "a: x: y.", "b: x: y.", "All is well."]
