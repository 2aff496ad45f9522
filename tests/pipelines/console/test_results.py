from __future__ import annotations

import io
import re

import pytest

from ig_core.config import Guidance
from pipelines.common.formatting import in_words, number
from pipelines.console.console import make_console
from pipelines.console.plan import print_plan
from pipelines.console.results import print_freed, print_garbage, print_report, print_store
from pipelines.graph.garbage import find_garbage
from pipelines.graph.graph import Graph
from pipelines.graph.plan import make_plan
from pipelines.results.measurements import collect
from pipelines.store.folder import FolderStore
from tests.pipelines.conftest import run_inline, tiny
from tests.pipelines.results.test_measurements import WIDE, made_up, spread


def printed(function, *arguments, **options) -> str:
    """What a function prints on a wide screen without colours."""
    screen = io.StringIO()
    function(*arguments, make_console(file=screen, width=160), **options)
    return screen.getvalue()


def rows(text: str, *starts: str) -> list[list[str]]:
    """Cells of the lines that begin with these words."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return [cells for cells in lines if tuple(" ".join(cells).split()[: len(starts)]) == starts]


def planned(experiment, store: FolderStore) -> str:
    results = collect(store, Graph(experiment))
    plan = make_plan(store, results.targets)
    return printed(lambda console: print_plan(results, plan, console))


# Results


@pytest.fixture
def results(finished):
    return collect(finished.home.store, finished.graph)


def test_the_table_by_scale_shows_every_number(results):
    text = printed(print_report, results)
    assert "FID by internal guidance scale: step 20, 200 samples a scale" in text
    for m in results.final.values():
        expected = [
            f"{m.guidance.ig_scale:g}",
            f"{m.fid:.2f}",
            f"{m.metrics['fid_low']:.2f} .. {m.metrics['fid_high']:.2f}",
            number(m.metrics["precision"]),
            number(m.metrics["recall"]),
            f"{m.metrics['inception_score']:.2f}",
        ]
        line = next(line for line in text.splitlines() if expected[2] in line)
        assert [cell for cell in expected if cell not in line] == []


def test_the_curve_shows_both_scales_at_every_step(results):
    text = printed(print_report, results)
    curve = text[text.index("FID over training: 100 samples a point") :]
    assert "unguided" in curve
    assert "ig scale 1.5" in curve
    for m in results.curve.values():
        cell = f"{m.fid:.2f} ({m.metrics['fid_low']:.2f} .. {m.metrics['fid_high']:.2f})"
        assert any(
            cell in line for line in curve.splitlines() if line.split()[:1] == [str(m.point.step)]
        )


def test_a_point_that_is_missing_is_a_dash(store, finished):
    point = next(iter(finished.graph.curve.values()))
    store.quarantine(point.evaluate.ref)
    text = printed(print_report, collect(store, finished.graph))
    (row,) = rows(text[text.index("FID over training") :], "10")
    assert row[1] == "-" or row[0].split() == ["10", "-"]


def test_costs_are_listed_by_stage(results):
    text = printed(print_report, results)
    costs = results.costs()
    for stage in ("data", "train", "sample", "evaluate"):
        (cells,) = rows(text[text.index("Cost:") :], stage)
        assert cells[1:3] == [
            str(costs.loc[stage, "artifacts"]),
            in_words(costs.loc[stage, "seconds"]),
        ]


def test_gains_are_changes_of_the_fid_with_their_interval_in_order():
    """A fall of 20 % is printed as -20 %, with the larger fall first."""
    made = made_up(s1=spread(10.0, *WIDE), s1_5=spread(8.0, *WIDE))
    (_, (_, low, high)) = made.improvements().values()
    text = printed(print_report, made)
    assert f"-20 % ({-100 * high:+.0f} .. {-100 * low:+.0f})" in text
    assert "own scale 1.5: FID -20 %" in text
    assert "Lowest FID at scale 1.5" in text


def test_a_rise_has_a_plus():
    made = made_up(s1=spread(10.0, 0.1, -0.1), s1_5=spread(12.0, 0.1, -0.1))
    text = printed(print_report, made)
    assert "+20 % (" in text
    assert "Lowest FID at scale 1." in text


def test_scales_that_cannot_be_told_from_the_best_are_named():
    made = made_up(s1=spread(9.0, *WIDE), s1_5=spread(8.0, *WIDE[::-1]), s2=spread(8.1, *WIDE))
    expected = "Lowest FID at scale 1.5; statistically indistinguishable: 1, 2."
    assert expected in printed(print_report, made)


def test_results_fit_a_narrow_terminal(results):
    screen = io.StringIO()
    print_report(results, make_console(file=screen, width=80))
    assert max(len(line) for line in screen.getvalue().splitlines()) <= 80
    for m in results.final.values():
        assert f"{m.fid:.2f}" in screen.getvalue()


def test_no_results_print_only_the_empty_costs(tmp_path):
    text = printed(print_report, collect(FolderStore(tmp_path / "store"), Graph(tiny())))
    assert "FID" not in text
    assert "Cost:" in text


# Plans


def test_a_plan_of_nothing_done_lists_all_of_it(tmp_path):
    text = planned(tiny(), FolderStore(tmp_path / "store"))
    assert f"tiny {Graph(tiny()).run_key[:8]} in {tmp_path / 'store'}" in text
    assert rows(text, "train", "checkpoint")[0][2:] == ["0", "2", "training from step 0 to 20"]
    assert rows(text, "sample", "images")[0][2:] == ["0", "6", "600 images"]
    (evaluate,) = rows(text, "evaluate", "evaluate")
    assert evaluate[2:4] == ["0", "6"]
    assert evaluate[4].startswith("step 10 at ig scale 1")
    assert evaluate[4].endswith("and 4 more")


def test_a_plan_of_everything_done_says_so(finished):
    text = planned(tiny(), finished.home.store)
    assert "All artifacts are cached" in text
    assert rows(text, "train", "checkpoint")[0][2:] == ["2", "0"]


def test_a_plan_of_one_more_scale_trains_nothing(finished):
    text = planned(tiny(ig_scales=(1.5, 2.5)), finished.home.store)
    assert rows(text, "train", "checkpoint")[0][2:] == ["2", "0"]
    assert rows(text, "sample", "images")[0][2:] == ["6", "2", "200 images"]
    (evaluate,) = rows(text, "evaluate", "evaluate")
    assert evaluate[2:4] == ["6", "1"]
    assert evaluate[4].startswith("step 20 at ig scale 2.5")
    assert "All artifacts are cached" not in text


def test_a_plan_of_longer_training_starts_from_the_last_checkpoint(finished):
    text = planned(tiny(train={"steps": 30}), finished.home.store)
    assert "training from step 20 to 30" in text


def test_a_plan_starts_from_a_state_to_resume_but_does_not_count_it(store, finished):
    state = finished.graph.resume(25)
    with store.publish(state.ref, {}) as directory:
        (directory / "state.json").write_text("{}")
    text = planned(tiny(train={"steps": 30}), store)
    (row,) = rows(text, "train")
    assert row[1:] == ["checkpoint", "2", "1", "training from step 25 to 30"]


def test_a_plan_trains_no_further_than_is_missing(store, finished):
    """The first checkpoint and all that was made from it are gone; the last one is there."""
    first, curve = finished.graph.checkpoints[0], next(iter(finished.graph.curve.values()))
    for node in (first, curve.images[0], *curve.evaluate.inputs.values(), curve.evaluate):
        if node.kind != "reference" and store.find(node.ref):
            store.quarantine(node.ref)
    assert "training from step 0 to 10" in planned(tiny(), store)


def test_two_points_of_one_step_and_scale_are_told_apart(tmp_path):
    """The curve and the comparison measure the last step at the same scale."""
    experiment = tiny(train={"steps": 10})
    (evaluate,) = rows(planned(experiment, FolderStore(tmp_path / "store")), "evaluate", "evaluate")
    named = re.sub(r" and \d+ more$", "", evaluate[4]).split(", ")
    assert len(named) == len(set(named))


# The store


def test_the_store_lists_runs_and_artifacts(finished):
    text = printed(lambda console: print_store(finished.home.store, console))
    assert rows(text, finished.graph.run_key[:8])[0] == [
        finished.graph.run_key[:8],
        "tiny",
        "20",
        "1 1.5",
    ]
    assert rows(text, "images")[0][:2] == [
        "images",
        str(len([n for n in finished.nodes if n.kind == "images"])),
    ]
    assert str(finished.home.store.root) in text


def test_garbage_is_listed_one_by_one_with_its_total(store, finished):
    graph = run_inline(store, tiny(ig_scales=(2.5,)))
    aside = store.quarantine(finished.graph.data.ref)
    garbage = find_garbage(store)
    text = printed(print_garbage, garbage) + printed(print_freed, garbage, deleted=False)
    evaluate = graph.final[Guidance(ig_scale=2.5)].evaluate
    assert f"evaluate/{evaluate.key}" in text
    assert f"quarantined: {aside}" in text
    assert "Would delete 6 artifacts" in text
    assert "1 quarantined" in text
    assert "Nothing was deleted" in text
    assert "Would" not in printed(print_freed, garbage, deleted=True)
