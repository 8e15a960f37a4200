from __future__ import annotations

import dataclasses
import itertools
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from kept_data import kept

from nsr.evaluation.compare import Interval
from nsr.evaluation.pass_at_k import is_rough
from nsr.runs.files import write_gzip_lines, write_json
from nsr.tasks.countdown.puzzle import generate
from study.figures import heating_figure, pass_at_k_figure, training_figure
from study.keep import Kept, KeptAnswers, KeptSet, KeptTraining
from study.numbers import LARGE_K, SMALL_K, Difference
from study.results import BEGIN, END, render, with_block, write
from study.runs import METHODS, RATES, SEEDS, SIDE_SEEDS, WITH_ZEROS
from study.sets import BIG, DEV, REAL_DEV_LONG, SETS, WIDE, PuzzleSet
from study.tables import Results, marked

COPIES = 50  # of four puzzles: from fewer, nothing can be said at the largest k
KEYS = [puzzle.key for puzzle in generate(4 * COPIES, seed=1)]
NSR_GAINS = 0.1
HALF = [16] * (4 * COPIES)


def made_up(data: Path) -> None:
    """A whole study of made-up counts: NSR gains a tenth at every puzzle, the others stay where base is."""
    data.mkdir()
    write_gzip_lines(
        data / "sets.jsonl.gz",
        (
            asdict(KeptSet(name=one.name, puzzles=KEYS, sizes=[3, 3, 4, 3] * COPIES, solutions=[2, 1, 3, 1] * COPIES))
            for one in SETS
        ),
    )
    for one in SETS:
        write_gzip_lines(data / f"{one.name}.jsonl.gz", map(asdict, models(one)))
    (data / "best").mkdir()
    beyond = [kept([4, 6] * COPIES, num_samples=8), kept([6, 8] * COPIES, num_samples=8, model="best", seed=42)]
    write_gzip_lines(data / "best" / f"{REAL_DEV_LONG.name}.jsonl.gz", map(asdict, beyond))
    names = ("correct_ratio", "entropy", "response_length", "verdict_no_answer", "verdict_wrong_value")
    names += ("verdict_wrong_numbers",)
    trainings = [
        KeptTraining(
            name=f"{method.name}_seed{seed}",
            method=method.name,
            part="main",
            seed=seed,
            rate=3e-5,
            metrics={name: [0.25] * 10 + [0.5] * 10 for name in names},
            mechanism=[{"kl_base": 0.0}, {"kl_base": 0.125}],
            metrics_sha256="ab" * 32,
            seconds=3600.0,
            commit="unknown",
        )
        for method in METHODS
        for seed in SEEDS
    ]
    write_gzip_lines(data / "trainings.jsonl.gz", map(asdict, trainings))
    answers = [
        KeptAnswers(model=name, method=name, answers={KEYS[0]: {"1 + 2 + 3": right, "no answer": 100 - right}})
        for name, right in (("base", 40), ("PSR", 90), ("NSR", 60))
    ]
    write_gzip_lines(data / "answers.jsonl.gz", map(asdict, answers))
    tries = [{"method": method.name, "rate": rate, "criterion": 0.5} for method in METHODS for rate in RATES]
    places = {one.name: {"warm_start": [0, 4, 8], "training": [3]} for one in (BIG, WIDE)}
    write_json(data / "overlap.json", {"warm_start_puzzles": 1000, "sets": places})
    write_json(data / "rates.json", {"tries": tries, "chosen": {method.name: 3e-5 for method in METHODS}})


def models(one: PuzzleSet) -> list[Kept]:
    shares = np.array([0.25, 0.5, 0.5, 0.75] * COPIES)
    found = [kept((shares * one.num_samples).astype(int).tolist(), num_samples=one.num_samples)]
    if one is DEV:
        return found
    if one in (BIG, WIDE):
        cooled = kept(np.full(len(shares), one.num_samples // 2).tolist(), num_samples=one.num_samples, nats=0.1)
        found.append(dataclasses.replace(cooled, model="base_T0.7", temperature=0.7))
    for method in METHODS:
        gain = NSR_GAINS if method.name == "NSR" else 0.0
        for seed in SEEDS:
            correct = np.round((shares + gain) * one.num_samples).astype(int).tolist()
            name = f"{method.name}_seed{seed}"
            nats = 0.2 if method.name == "PSR" else 1.0
            found.append(
                kept(correct, num_samples=one.num_samples, model=name, method=method.name, seed=seed, nats=nats)
            )
            if one is WIDE and method.name in WITH_ZEROS and seed in SIDE_SEEDS:
                name = f"{method.name}_kept_seed{seed}"
                found.append(kept(HALF, model=name, method=method.name, part="kept", seed=seed))
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "data"
    made_up(path)
    return path


def test_the_hypotheses_are_called_by_the_plan(data: Path) -> None:
    results = Results(data)
    one, large = results.primary("NSR")
    assert one.estimate == pytest.approx(NSR_GAINS, abs=0.01)
    assert large.estimate == pytest.approx(0.0, abs=0.01)
    assert results.call_h1() == "holds"
    assert results.call_h2() == "open"  # PSR did not change
    assert results.call_h3() == "open"  # less entropy, and as many equations
    assert results.entropy_difference().estimate == pytest.approx((0.2 - 1.0) / 10)
    assert results.entropy_difference("base", "PSR").estimate == pytest.approx((0.2 - 1.0) / 10)
    assert results.distinct_difference().estimate == 0.0
    assert results.call_h4() == "fails"  # at k = 1 it is a tenth below NSR
    assert results.in_words() == "H1 holds, H4 fails, H2 and H3 stay open"


def test_a_method_stands_beside_base_at_the_temperature_of_its_entropy(data: Path) -> None:
    rows = {row["name"]: row for row in Results(data).beside_heated()}
    assert {name: row["temperature"] for name, row in rows.items() if row["temperature"] != 1.0} == {"PSR": 0.7}
    assert rows["NSR"]["cells"][0].startswith("**+9.4 [")
    assert rows["RLVR"]["cells"][0].startswith("0.0 [")


def test_where_a_curve_meets_that_of_base(data: Path) -> None:
    results = Results(data)
    assert results.crossing("RLVR") == 1  # it is base
    assert (results.crossing("NSR") or LARGE_K) > 16  # it gains until all is found


def test_both_ends_by_size(data: Path) -> None:
    rows = {row["name"]: row for row in Results(data).ends_by_size()}
    assert [row["count"] for row in rows.values()] == [3 * COPIES, 3 * COPIES, COPIES, COPIES]
    assert rows["4 numbers, pass@1"]["base"].estimate == 0.5
    assert rows["4 numbers, pass@1"]["of"]["NSR"].startswith("+9.4 [")
    assert rows["4 numbers, pass@256"]["of"]["NSR"].startswith("0.0 [")


def test_averages_over_what_is_kept_stand_beside_base_and_the_same_seeds(data: Path) -> None:
    rows = {row["name"]: row for row in Results(data).kept_only()}
    assert rows.keys() == set(WITH_ZEROS)
    assert {row["seeds"] for row in rows.values()} == {len(SIDE_SEEDS)}
    assert rows["NSR"]["changes"][0].startswith("0.0 [")  # a half everywhere, as base has it on average
    assert rows["NSR"]["changes"][1].startswith("**-9.4 [")


def test_what_was_met_before_is_counted_and_left_out(data: Path) -> None:
    results = Results(data)
    assert [(one["warm_start"], one["training"]) for one in results.met()] == [(3, 1), (3, 1)]
    for seed in SEEDS:  # a gain at a puzzle that was met counts in the comparison alone
        one = results.wide[f"NSR_seed{seed}"]
        results.wide[one.model] = dataclasses.replace(one, correct=[32, *one.correct[1:]])
    assert results.unmet("NSR")[0].estimate == pytest.approx(3 / 32)
    assert results.primary("NSR")[0].estimate == pytest.approx((3 + 21 / (4 * COPIES)) / 32)


def test_the_document_holds_the_numbers(data: Path) -> None:
    text = render(Results(data), "results.md.j2")
    rows = {row.split("|")[1].strip(): row for row in text.splitlines() if row.startswith("|")}
    assert "| H1 | NSR is not below base" in rows["H1"]
    assert "+9.4 points" in rows["H1"]  # 3 of 32 more: what a tenth rounds to
    assert "**fails**" in rows["H4"]
    assert "0.1250" in text  # the divergence of every method
    assert "40.0% | 90.0% | 60.0%" in text
    assert f"{len(METHODS) * len(SEEDS)} trainings" in text
    assert "30.0 and" in text  # an hour each
    assert "25.0% -> 50.0% | 25.0% -> 50.0%" in text
    assert "| real development rows | best | 87.5%" in text
    assert "| +25.0 [" in text


def test_every_table_is_one(data: Path) -> None:
    """A head above its dashes, and as many cells in every row."""
    lines = render(Results(data), "results.md.j2").splitlines()
    dashes = [place for place, line in enumerate(lines) if line.startswith("|---")]
    assert len(dashes) > 12
    for place in dashes:
        width = lines[place].count("|")
        rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[place - 1 :]))
        assert len(rows) > 2
        assert {row.count("|") for row in rows} == {width}, rows[0]


def test_what_was_not_made_has_no_section(data: Path, tmp_path: Path) -> None:
    without = tmp_path / "data"
    shutil.copytree(data, without)
    shutil.rmtree(without / "best")
    assert "How far the embedded model goes" in render(Results(data), "results.md.j2")
    assert "How far the embedded model goes" not in render(Results(without), "results.md.j2")


def test_everything_is_written_again_to_the_last_byte(data: Path, tmp_path: Path) -> None:
    written: list[dict[str, bytes]] = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "data").symlink_to(data)
        readme = tmp_path / f"{name}.md"
        readme.write_text(f"before\n{BEGIN}\nwhat was there\n{END}\nafter\n")
        write(folder, readme)
        written.append({path.name: path.read_bytes() for path in [*folder.iterdir(), readme] if path.is_file()})
        assert readme.read_text().startswith("before\n") and readme.read_text().endswith("\nafter\n")
        assert "what was there" not in readme.read_text()
    one, two = written
    assert one.pop("one.md") == two.pop("two.md")
    assert one == two
    assert {"README.md", "pass_at_k.png", "training.svg", "heating.png"} <= one.keys()


def test_figures_show_their_data(data: Path, tmp_path: Path) -> None:
    results = Results(data)
    pages = [
        *pass_at_k_figure(results.big, tmp_path / "a"),
        *training_figure(results.trainings, tmp_path / "b"),
        *heating_figure(results.big, tmp_path / "c"),
    ]
    before = [page.read_bytes() for page in pages]
    without = {name: one for name, one in results.big.items() if one.method != "NSR"}
    trainings = {name: one for name, one in results.trainings.items() if one.method != "NSR"}
    pass_at_k_figure(without, tmp_path / "a")
    training_figure(trainings, tmp_path / "b")
    heating_figure(without, tmp_path / "c")
    assert not any(page.read_bytes() == old for page, old in zip(pages, before, strict=True))


def test_marks_are_only_on_what_holm_leaves() -> None:
    found = marked(
        {
            "clear": Difference(interval=Interval(0.05, 0.04, 0.06), p_value=1e-6),
            "lost": Difference(interval=Interval(0.02, 0.001, 0.04), p_value=0.04),
            "none": Difference(interval=Interval(0.0, -0.01, 0.01), p_value=0.9),
        }
    )
    assert found == {
        "clear": "**+5.0 [+4.0, +6.0]**",
        "lost": "+2.0 [+0.1, +4.0]",
        "none": "0.0 [-1.0, +1.0]",
    }


def test_a_readme_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no '<!-- results"):
        with_block(f"{END}\n{BEGIN}\n", "new")


def test_no_k_is_rough_on_the_set_it_is_read_on() -> None:
    assert not is_rough(LARGE_K, BIG.num_samples)
    assert not is_rough(SMALL_K, WIDE.num_samples)


def test_what_is_not_measured_yet_is_said(data: Path, tmp_path: Path) -> None:
    half = tmp_path / "data"
    shutil.copytree(data, half)
    (half / f"{BIG.name}.jsonl.gz").unlink()
    with pytest.raises(ValueError, match=r"no measurement of NSR_seed42 on synthetic_512 \(31 are missing\)"):
        Results(half)
