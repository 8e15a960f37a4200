from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from pretend_runs import NUM_PUZZLES, NUM_SAMPLES, baseline_run, puzzles_of, train_run

from nsr.report import sample_viewer as browser
from nsr.report.collect import collect
from nsr.report.methods import Section, arrange
from nsr.report.sample_viewer import MOST_PUZZLES, SAMPLES_A_PUZZLE, SampleBook, read_samples, shown_text
from nsr.tasks.countdown.solver import solve


def sections_of(folder: Path) -> list[Section]:
    return arrange(collect([folder]).runs)[0]


def test_a_few_of_each_verdict_of_every_method_on_the_same_puzzles(tmp_path: Path) -> None:
    for seed in (42, 43):
        train_run(tmp_path, "NSR", seed, after=3)
    sections = sections_of(tmp_path)
    book = read_samples(sections)
    assert book.problems == []
    assert [method["label"] for method in book.methods] == ["base", "NSR"]
    assert [method["source"] for method in book.methods] == ["NSR_seed42, step 0", "NSR_seed42, step 4"]
    assert len(book.puzzles) == NUM_PUZZLES <= MOST_PUZZLES
    assert len(book.samples) == 2 * NUM_PUZZLES * SAMPLES_A_PUZZLE
    places = {tuple(sample[:2]) for sample in book.samples}
    assert places == {(method, puzzle) for method in range(2) for puzzle in range(NUM_PUZZLES)}
    # Rows 0..2 are right, 3 is a wrong value, 4 no answer: one of each is kept.
    verdicts = [sample[2] for sample in book.samples if sample[:2] == (1, 0)]
    names = [browser._VERDICTS[verdict] for verdict in verdicts]
    assert sorted(set(names)) == ["correct", "no_answer", "wrong_value"]
    # All samples of all seeds are read, those of the base once.
    assert book.num_read == 4 * NUM_PUZZLES * NUM_SAMPLES


def test_thinning_is_even_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "MOST_SAMPLES", 48)
    train_run(tmp_path, "NSR")
    book = read_samples(sections_of(tmp_path))
    assert len(book.samples) == 48
    keys = [puzzle.key for puzzle in puzzles_of(42)]
    assert book.puzzles == [key.replace(",", " ").replace("=", " → ") for key in keys[::4]]


def test_the_share_of_solutions_found_by_hand(tmp_path: Path) -> None:
    """Every puzzle with a right sample has one equation found, of as many as the solver knows."""
    train_run(tmp_path, "NSR", before=[1, 0] * (NUM_PUZZLES // 2), after=2)
    (section,) = sections_of(tmp_path)
    book = read_samples([section])
    shares = [1 / len(solve(puzzle)) for puzzle in puzzles_of(42)]
    member = section.arms[1].members[0]
    assert member.base is not None
    assert book.coverage[id(member.evaluation)] == pytest.approx(sum(shares) / NUM_PUZZLES)
    assert book.coverage[id(member.base)] == pytest.approx(sum(shares[::2]) / NUM_PUZZLES)


def test_coverage_that_an_evaluation_knows_is_taken(tmp_path: Path) -> None:
    path = baseline_run(tmp_path) / "evaluations" / "step_000000.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "coverage": 0.25}))
    (section,) = sections_of(tmp_path)
    assert list(read_samples([section]).coverage.values()) == [0.25]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda lines: lines[:-3], "there are 189 samples of the evaluation at step 0, not 192 as there should be."),
        (lambda lines: [b"{}\n", *lines[1:]], "1 of 192 samples of the evaluation at step 0 are no samples of this"),
        (lambda lines: [b"[" * 100_000 + b"\n", *lines[1:]], "1 of 192 samples of the evaluation at step 0 are no"),
    ],
)
def test_samples_that_are_not_as_they_should_be(damage: object, told: str, tmp_path: Path) -> None:
    path = baseline_run(tmp_path) / "evaluations" / "step_000000.samples.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(damage(lines))))  # type: ignore[operator]
    book = read_samples(sections_of(tmp_path))
    (problem,) = book.problems
    assert problem.startswith(f"baseline_seed42: {told}")
    assert book.samples
    assert book.coverage == {}


def test_a_file_cut_off_keeps_what_can_be_read(tmp_path: Path) -> None:
    path = baseline_run(tmp_path) / "evaluations" / "step_000000.samples.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-100])
    book = read_samples(sections_of(tmp_path))
    (problem,) = book.problems
    assert problem.startswith(
        "baseline_seed42: the samples of the evaluation at step 0 cannot be read beyond the first "
    )


def test_text_is_made_safe_and_short() -> None:
    assert shown_text("a\x1b[31m\ud800\u202e<b>\n") == r"a\x1b[31m\ud800\u202e<b>" + "\n"
    long = shown_text("x" * 100_000 + "END")
    assert len(long) < 1600
    assert long.endswith("xEND")
    assert "[... 98,503 characters left out ...]" in long
    assert len(shown_text("\x1b" * 100_000)) < 3100


def test_what_is_embedded_cannot_end_its_element() -> None:
    evil = "</script><script>alert(1)</script><!--\u2028&amp;"
    book = SampleBook(methods=[{"label": evil, "mark": "m0", "source": evil}], puzzles=["1 → 1"])
    book.samples.append((0, 0, 5, 1, evil, ""))
    text = str(book.embedded())
    assert not set("<>&\u2028\u2029") & set(text)
    data = json.loads(text)
    assert data["samples"] == [[0, 0, 5, 1, evil, ""]]
    assert data["methods"][0]["label"] == evil
