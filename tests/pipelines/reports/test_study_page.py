"""The page of a study."""

from __future__ import annotations

import dataclasses
import io
import shutil

import pandas as pd
import pytest

from pipelines.__main__ import main
from pipelines.commands.report import report_study
from pipelines.commands.study import StudyOptions, run_study
from pipelines.console.console import make_console
from pipelines.reports.study_page import confirmation, confirmed_sentence, headline, study_page
from pipelines.status.activity import LAST_FILE, read_process_state
from pipelines.store.folder import FolderStore
from pipelines.store.home import Home
from pipelines.study.confirm import BASELINE
from pipelines.study.findings import findings
from pipelines.study.ledger import StudyLedger
from tests.pipelines.conftest import OUTSIDE
from tests.pipelines.reports.test_html import EVIL, Checked, stands_alone
from tests.pipelines.study.conftest import small_study


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study with its home; what it printed."""
    home, output = Home(tmp_path_factory.mktemp("study")), io.StringIO()
    options = StudyOptions(parallel=1, confirm_seeds=2)
    with pytest.MonkeyPatch.context() as patch:
        for name in OUTSIDE:
            patch.delenv(name, raising=False)
        assert run_study(small_study(), options, home, make_console(file=output, width=200)) == 0
    return home, output.getvalue()


@pytest.fixture(scope="module")
def found(done):
    home, _ = done
    ledger = StudyLedger(small_study(), f"sqlite:///{home.root / 'study.db'}", home.store)
    try:
        return findings(small_study(), ledger.trials(), ledger.importances(), home.store)
    finally:
        ledger.close()


def with_best(found, equals=()):
    """The findings if just these were equal to the best."""
    return dataclasses.replace(found, equals=tuple(equals))


def test_a_study_writes_its_page_and_says_where(done):
    home, output = done
    path = home.report / "study-small" / "report.html"
    assert str(path) in output
    assert path.stat().st_size < 1_000_000
    text = stands_alone(path.read_text()).text
    assert "On 2 other training seeds and other noise" in text
    assert BASELINE in text


def test_a_study_is_known_as_what_ended_last(done):
    home, _ = done
    last = read_process_state(home.activity / LAST_FILE)
    assert (last.title, last.outcome) == ("study small", "finished")
    assert (last.trials.complete, last.trials.wanted, last.trials.at_first) == (8, 8, 0)
    assert "has the lowest FID of 8 points" in last.news
    assert [path.name for path in home.activity.iterdir()] == [LAST_FILE]


def test_every_trial_is_there_with_its_interval(done, found):
    home, _ = done
    document = stands_alone(study_page(found, home.store))
    for trial in found.trials:
        low, high = trial.facts["fid_low"], trial.facts["fid_high"]
        assert f"{trial.fid:.2f} ({low:.2f} .. {high:.2f})" in document.text
    layers = {trial.point.aux_layer for trial in found.trials}
    labels = [svg["aria-label"] for svg in document.all("svg") if "aria-label" in svg]
    assert [label.partition(":")[0] for label in labels[:-1]] == [
        f"Auxiliary layer {layer}" for layer in sorted(layers)
    ]
    assert len(document.all("img")) >= 2
    assert f"--trials {len(found.trials)}" not in document.text  # not in the registry: no command
    assert "igdit run experiment.json" in document.text


def test_equals_are_marked_and_not_ranked(found):
    complete = sorted((t for t in found.trials if t is not found.best), key=lambda t: t.fid)
    text = study_page(with_best(found, complete[:3]), FolderStore("nowhere"))
    rows = text.split("Best point and its equals")[1].split("</table>")[0]
    places = [t.point for t in complete[:3]]
    order = sorted(places, key=lambda p: (p.aux_layer, p.aux_weight, p.ig_scale))
    numbers = [next(t.number for t in complete if t.point == p) for p in order]
    found_numbers = [int(row.split(">")[2].split("<")[0]) for row in rows.split("<tr")[2:]]
    assert found_numbers == [found.best.number, *numbers]
    assert rows.count("badge equal") == 3
    assert "3 other points cannot be distinguished from it" in headline(
        with_best(found, complete[:3])
    )


def test_a_study_without_points_says_so(found):
    empty = dataclasses.replace(
        found, trials=(), best=None, equals=(), importances={}, table=pd.DataFrame()
    )
    assert (
        "No point of this study is complete yet"
        in stands_alone(study_page(empty, FolderStore("nowhere"))).text
    )


def test_a_study_cannot_have_a_name_that_acts(found):
    with pytest.raises(ValueError, match="name must be a file name"):
        dataclasses.replace(found.study, name=EVIL.replace("/", "|"))


def confirmed(gains: dict[str, list[float]]) -> pd.DataFrame:
    rows = [{"candidate": BASELINE, "seed": s, "fid": 10.0, "gain": 0.0} for s in (1, 2, 3)]
    rows += [
        {"candidate": name, "seed": s, "fid": 10 * (1 - g), "gain": g}
        for name, values in gains.items()
        for s, g in enumerate(values, 1)
    ]
    return pd.DataFrame(rows)


def test_what_holds_on_other_seeds_is_told_from_what_does_not():
    table = confirmed(
        {"good": [0.30, 0.31, 0.32], "noise": [-0.3, 0.1, 0.3], "bad": [-0.30, -0.31, -0.32]}
    )
    badges = [e["class"] for e in Checked(confirmation(table)).all("span")]
    assert badges == ["badge lowest", "badge equal", "badge bad"]
    assert "holds for good." in confirmed_sentence(table)
    assert "no candidate" in confirmed_sentence(confirmed({"noise": [-0.3, 0.1, 0.3]}))
    assert confirmation(None) is confirmed_sentence(None) is None


def test_a_best_point_that_was_not_confirmed_is_said_to_be_new(found):
    table = confirmed({"layer 9, weight 9, scale 9": [0.1, 0.2, 0.3]})
    assert "and is not confirmed" in Checked(study_page(found, FolderStore("nowhere"), table)).text
    assert "confirmed itself" not in Checked(study_page(found, FolderStore("nowhere"))).text


def test_the_page_can_be_written_from_the_storage_alone(done, tmp_path, monkeypatch, capsys):
    home = Home(shutil.copytree(done[0].root, tmp_path / "copy"))
    path = home.report / "study-small" / "report.html"
    before = path.read_text()
    path.unlink()
    assert report_study(home, "small") == path
    after = path.read_text()
    assert (
        Checked(after).text.split("Configuration")[0]
        == (Checked(before).text.split("Configuration")[0])
    )
    monkeypatch.setenv("IGDIT_HOME", str(home.root))
    assert main(["report", "study", "small"]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    assert main(["report", "study", "large"]) == 2
    err = capsys.readouterr().err
    assert "(small)" in err
    assert "'large'" in err
