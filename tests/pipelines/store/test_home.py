"""Where everything lies: addresses, and variables of the environment that say them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.common.settings import cache_folder, unset_empty_settings
from pipelines.store.home import Home
from pipelines.store.open import file_path, open_store
from pipelines.submit.job import job_environment, job_identity

VARIABLES = (
    "IGDIT_HOME",
    "IGDIT_STORE",
    "IGDIT_STUDY_STORAGE",
    "MLFLOW_TRACKING_URI",
    "IGDIT_CACHE",
    "IGDIT_CACHE_GIB",
    "IGDIT_LEASE_SECONDS",
    "IGDIT_SECRETS",
)


def where() -> tuple[object, ...]:
    """All that the variables say."""
    home = Home.default()
    store = open_store("memory://empty/x")
    return (
        home.root,
        home.store.uri,
        home.tracking_uri,
        home.study_storage,
        home.has_studies,
        cache_folder(),
        store.cache.limit,
        store.leases.seconds,
    )


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_variable_is_one_that_is_not_set(empty, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    unset = where()
    assert unset[0] == tmp_path / "runs"
    for name in VARIABLES:
        monkeypatch.setenv(name, empty)
    assert where() == unset
    assert not set(VARIABLES) & set(job_environment(os.environ, (), None))


def test_empty_variables_reach_no_library(monkeypatch):
    """MLflow takes an empty number for one that it cannot read."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("OTHER", "")
    unset_empty_settings()
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["OTHER"]) == ("me", "")


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/a/b", "/a/b"),
        ("a/b", "a/b"),
        ("/a:b", "/a:b"),
        ("a:b", "a:b"),
        ("file:///a", "/a"),
        ("file://localhost/a/b", "/a/b"),
        ("file:/a", "/a"),
        ("FILE:///a", "/a"),
        ("file:////a", "/a"),
        ("file:///a%20b", "/a b"),
        ("s3://bucket/a", None),
        ("http://localhost:5000", None),
    ],
)
def test_the_path_of_an_address(uri, path):
    assert file_path(uri) == path
    if path is not None and path.startswith("/"):
        assert open_store(uri).root == Path(path)


def test_a_file_of_another_host_is_refused():
    with pytest.raises(ValueError, match=r"file:///PATH.*file://other/a.*'other'"):
        open_store("file://other/a")


def test_a_store_is_the_same_however_its_folder_is_written():
    names = ("/data/store", "file:///data/store/", "file://localhost/data/store")
    assert len({job_identity("x", {"IGDIT_STORE": name}, None) for name in names}) == 1


def test_a_home_may_be_written_as_an_address(monkeypatch, tmp_path):
    monkeypatch.setenv("IGDIT_HOME", f"file://localhost{tmp_path}")
    assert Home.default().root == tmp_path


def test_a_home_in_a_bucket_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IGDIT_HOME", "s3://bucket/runs")
    assert main(["plan", "digits"]) == 2
    err = capsys.readouterr().err
    assert "IGDIT_HOME must be a folder of this machine, but got 's3://bucket/runs'" in err
    assert "IGDIT_STORE" in err
    assert not list(tmp_path.iterdir())


PACKAGE = "ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0123abcd"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("IGDIT_HOME", ""),
        ("IGDIT_HOME", "results"),
        ("IGDIT_STORE", "store"),
        ("IGDIT_STORE", "file://{here}/store"),
        ("IGDIT_STUDY_STORAGE", "sqlite:///study.db"),
        ("MLFLOW_TRACKING_URI", "sqlite:////{here}/mlflow.db"),
        ("MLFLOW_TRACKING_URI", "mlruns"),
    ],
)
def test_results_in_a_folder_that_ray_deletes_are_refused(
    variable, value, monkeypatch, tmp_path, capsys
):
    """As `ray job submit` without addresses starts a driver."""
    here = tmp_path / PACKAGE
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv(variable, value.format(here=here))
    for command in ("run", "study"):
        assert main([command, "digits"]) == 2
        err = capsys.readouterr().err
        assert f"{variable} must be a place that stays" in err
        assert "--runtime-env-json" in err
    assert not list(here.iterdir())
    assert not (tmp_path / "home").exists()


def test_a_home_elsewhere_is_taken_in_a_folder_that_ray_deletes(monkeypatch, tmp_path):
    here = tmp_path / PACKAGE
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    Home.default().prepare()
