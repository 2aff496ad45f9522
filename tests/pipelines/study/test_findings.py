"""What a study says: lines on the way, and what was found."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pandas as pd
import pytest

from pipelines.commands.study import StudyOptions
from pipelines.common.formatting import number
from pipelines.console.console import make_console
from pipelines.console.study import MAX_POINTS, print_findings
from pipelines.graph.graph import Graph
from pipelines.reports.study_page import study_page
from pipelines.results.measurements import collect
from pipelines.store.errors import CorruptArtifactError
from pipelines.store.file_names import METRICS_FILE
from pipelines.store.folder import FolderStore
from pipelines.store.keys import Ref
from pipelines.study.damage import rebuild_damaged
from pipelines.study.driver import measured_trials
from pipelines.study.findings import Findings, findings
from pipelines.study.trials import Trial
from tests.pipelines.conftest import damage, run_inline
from tests.pipelines.study.conftest import small_study


def trial(number, fid=None, layer=1, weight=0.5, scale=1.0, **changes):
    from experiments import Point

    given = {
        "state": "RUNNING" if fid is None else "COMPLETE",
        "facts": {} if fid is None else {"fid_low": fid - 1, "fid_high": fid + 1},
        "curve": {},
        "owner": "a",
    } | changes
    point = Point(aux_layer=layer, aux_weight=weight, ig_scale=scale)
    return Trial(number=number, point=point, fid=fid, **given)


def shown(trials, **changes):
    """What is printed of trials."""
    table = pd.DataFrame([{"trial": t.number, "state": t.state} for t in trials])
    best = min((t for t in trials if t.fid is not None), key=lambda t: t.fid, default=None)
    given = {
        "equals": (),
        "importances": {},
        "holdout": None,
        "spent_seconds": 0.0,
        "naive_seconds": 0.0,
    } | changes
    console = make_console(file=io.StringIO(), width=200)
    print_findings(Findings(small_study(), tuple(trials), table, best, **given), console)
    return console.file.getvalue()


@pytest.mark.parametrize("count", [MAX_POINTS - 1, MAX_POINTS, MAX_POINTS + 2])
def test_a_table_that_is_cut_says_so(count):
    text = shown([trial(n, 10.0 + n) for n in range(count)])
    assert f"{count} complete" in text
    assert (f"the {MAX_POINTS} lowest FIDs of {count}" in text) == (count > MAX_POINTS)
    assert ("lowest FID first" in text) == (count <= MAX_POINTS)
    assert sum(" .. " in line for line in text.splitlines()) == min(count, MAX_POINTS)


def measurement(scale, step, num_samples):
    guidance = small_study().experiment.guidance_at(scale)
    point = SimpleNamespace(step=step, num_samples=num_samples)
    return SimpleNamespace(guidance=guidance, point=point)


def test_a_line_tells_a_trial_from_the_curve_at_its_place():
    """The same scale and step have two FIDs, of 40 and of 20 samples."""
    study, trial_group = small_study(), [trial(4, scale=1.5), trial(6, scale=1.0)]
    said = [
        measured_trials(trial_group, measurement(*m), study)
        for m in ((1.5, 6, 40), (1.5, 6, 20), (1.0, 6, 40), (1.5, 2, 20))
    ]
    assert said == [
        "trial 4: layer 1, weight 0.5",
        "curve of trials 4, 6: layer 1, weight 0.5",
        "trial 6: layer 1, weight 0.5",
        "curve of trials 4, 6: layer 1, weight 0.5",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trials": "0"}, "at least 1, but got '0'"),
        ({"trials": "+0"}, r"at least 1, but got '\+0'"),
        ({"trials": "²"}, "trials must be a number"),
        ({"trials": "++3"}, "trials must be a number"),
        ({"parallel": 0}, "parallel must be at least 1"),
        ({"confirm_seeds": 1}, "confirm_seeds must be 0 or at least 2"),
        ({"confirm_seeds": -1}, "confirm_seeds must be 0 or at least 2"),
        ({"hours": 0.0}, "hours must be positive"),
        ({"hours": float("nan")}, "hours must be positive"),
        ({"target_fid": 0.0}, "target_fid must be positive"),
        ({"target_fid": float("nan")}, "target_fid must be positive"),
        ({"ask_above": -1.0}, "ask_above must be at least 0"),
        ({"ask_above": float("nan")}, "ask_above must be at least 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        StudyOptions(**options)
    StudyOptions(trials="1", parallel=1, confirm_seeds=2, hours=0.1, target_fid=0.1, ask_above=0.0)


@pytest.mark.parametrize(
    ("asked", "goal", "complete", "wanted"),
    [
        (None, 0, 0, 8),
        (None, 20, 3, 20),
        ("5", 20, 7, 5),
        ("+5", 0, 0, 5),
        ("+5", 4, 4, 9),
        ("+5", 9, 6, 9),
        ("+5", 9, 9, 14),
        ("+5", 4, 6, 11),
    ],
)
def test_the_same_command_asks_for_as_many_trials_until_they_are_there(
    asked, goal, complete, wanted
):
    trials = [trial(n, 10.0) for n in range(complete)] + [trial(99)]
    assert StudyOptions(trials=asked).wanted(small_study(), trials, goal) == wanted


def test_equals_are_what_the_paired_interval_cannot_tell_from_the_best():
    import torch

    from ig_core.metrics.jackknife import Jackknife
    from pipelines.study.findings import _includes_zero

    spread = torch.linspace(-1.0, 1.0, 20, dtype=torch.float64)
    best = Jackknife(10.0, 10.0 + spread / 20)
    assert _includes_zero(Jackknife(10.1, 10.1 + spread.flip(0) / 20), best)
    for gain in (-2.0, 2.0):
        assert not _includes_zero(Jackknife(10.0 + gain, 10.0 + gain + spread / 20), best)
    assert not _includes_zero(best, None)
    assert not _includes_zero(None, best)


def test_trials_that_were_measured_otherwise_are_not_compared(tmp_path):
    facts = {"fid_low": 1.0, "fid_high": 2.0, "fingerprint": "a"}
    trials = [trial(0, 1.5, facts=facts), trial(1, 1.6, facts=facts | {"fingerprint": "b"})]
    with pytest.raises(ValueError, match=r"not measured in the same way .* a, b"):
        findings(small_study(), trials, {}, FolderStore(tmp_path))
    alike = [trial(n, fid, facts=facts) for n, fid in enumerate((1.8, 1.5, 1.5, 1.6))]
    found = findings(small_study(), alike, {}, FolderStore(tmp_path))
    assert (found.best, found.spent_seconds) == (alike[1], 0.0)


def test_what_is_damaged_is_built_again_once(tmp_path):
    store, said, tries = FolderStore(tmp_path), [], []
    for key in ("a" * 20, "b" * 20):
        with store.publish(Ref("images", key), {}) as folder:
            (folder / "file").write_text("x")

    def act():
        tries.append(0)
        if len(tries) < 3:
            raise CorruptArtifactError(Ref("images", "ab"[len(tries) - 1] * 20), tmp_path, "cut")
        return "built"

    assert rebuild_damaged(store, act, said.append) == "built"
    assert [line.partition("/")[2][0] for line in said] == ["a", "b"]
    assert len(store.quarantined()) == 2

    tries.clear()

    def never():
        tries.append(0)
        if len(tries) > 2:
            raise AssertionError("it is built again for ever")
        raise CorruptArtifactError(Ref("images", "a" * 20), tmp_path, "cut")

    with pytest.raises(CorruptArtifactError):
        rebuild_damaged(store, never, said.append)
    assert len(said) == 3


def test_a_study_is_shown_though_its_artifacts_are_damaged(tmp_path):
    """Its FIDs are in the database; a page is no place to ask for a repair."""
    store, study = FolderStore(tmp_path), small_study()
    experiment = study.at(1, 0.5, (1.0, 1.5))
    graph = Graph(experiment)
    run_inline(store, experiment, [p.evaluate for p in graph.final.values()])
    points = list(collect(store, graph).final.values())
    facts = [
        {
            "fid_low": m.metrics["fid_low"],
            "fid_high": m.metrics["fid_high"],
            "evaluate": f"evaluate/{m.point.evaluate.key}",
        }
        for m in points
    ]
    trials = [
        trial(n, m.fid, scale=m.guidance.ig_scale, facts=facts[n]) for n, m in enumerate(points)
    ]
    whole = findings(study, trials, {}, store)
    train, points_cost = whole.table["train_seconds"][0], whole.table["point_seconds"].sum()
    assert train > 0
    assert points_cost > 0
    assert whole.spent_seconds == pytest.approx(train + points_cost)
    assert whole.naive_seconds == pytest.approx(len(trials) * train + points_cost)
    damage(store.root / "evaluate" / points[0].point.evaluate.key / METRICS_FILE)
    manifest = store.root / "evaluate" / points[1].point.evaluate.key / "MANIFEST.json"
    manifest.write_text("{")
    (store.root / str(graph.data.ref) / "MANIFEST.json").write_text("[]")
    store = FolderStore(tmp_path)
    found = findings(study, trials, {}, store)
    assert (found.best.fid, found.equals) == (whole.best.fid, ())
    assert 0 < found.spent_seconds < whole.spent_seconds
    assert number(found.best.fid) in study_page(found, store)
    foreign = trial(7, 99.0, facts=facts[0] | {"evaluate": "images/" + "a" * 20})
    with store.publish(Ref("images", "a" * 20), {}) as folder:
        (folder / METRICS_FILE).write_text("{}")
    assert findings(study, [*trials, foreign], {}, store).equals == ()
