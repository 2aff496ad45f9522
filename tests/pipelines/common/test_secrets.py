"""The file of secrets; passwords of databases are written down nowhere."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys

import pytest

from pipelines.__main__ import main
from pipelines.commands.study import StudyOptions, run_study
from pipelines.common import redaction
from pipelines.common.redaction import (
    RedactingFormatter,
    has_secret,
    load_secrets,
    parse_secrets,
    redact,
)
from pipelines.console.console import make_console
from pipelines.stages.build import build
from pipelines.stages.jobs import Job, TrainJob
from pipelines.stages.training.worker import train_worker
from pipelines.store.home import Home
from pipelines.study import storage
from tests.pipelines.conftest import tree
from tests.pipelines.study.conftest import small_study


@pytest.fixture(autouse=True)
def _environment_of_its_own(monkeypatch):
    """What a test loads is gone afterwards."""
    before = dict(os.environ)
    monkeypatch.setattr(redaction, "_added", set())
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Factory of a file of secrets."""

    def make(text: str, mode: int = 0o600):
        path = tmp_path / "secrets"
        path.write_text(text)
        path.chmod(mode)
        monkeypatch.setenv("IGDIT_SECRETS", str(path))
        return path

    return make


def test_lines_comments_and_quotes():
    text = "# database\nA=1\n\n  export B = 'x y'  \nC=\"q=#'r\"\nD=\nE='half\n"
    assert parse_secrets(text, "f") == {"A": "1", "B": "x y", "C": "q=#'r", "D": "", "E": "'half"}


@pytest.mark.parametrize("line", ["pa55word", "=pa55word", "A B=pa55word", "9A=pa55word"])
def test_a_line_that_is_none_is_named_and_not_repeated(line):
    with pytest.raises(ValueError, match="line 2 of /f must be NAME=VALUE") as caught:
        parse_secrets(f"A=1\n{line}\n", "/f")
    assert "pa55word" not in str(caught.value)


def test_what_is_set_stays_and_secret_values_are_hidden(file, monkeypatch):
    monkeypatch.delenv("IGDIT_TEST_PASSWORD", raising=False)
    monkeypatch.setenv("IGDIT_TEST_TOKEN", "mine")
    file("IGDIT_TEST_PASSWORD=hush-hush\nIGDIT_TEST_TOKEN=theirs\n")
    load_secrets()
    load_secrets()
    assert os.environ["IGDIT_TEST_PASSWORD"] == "hush-hush"
    assert os.environ["IGDIT_TEST_TOKEN"] == "mine"
    assert redact("refused: hush-hush, theirs") == "refused: ***, ***"


def test_users_buckets_and_files_in_the_file_are_not_hidden(file):
    names = (
        "AWS_ACCESS_KEY_ID",
        "PGUSER",
        "MLFLOW_TRACKING_USERNAME",
        "IGDIT_STORE",
        "PGPASSFILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
        "TOKENIZERS_PARALLELISM",
        "AWS_DEFAULT_REGION",
    )
    file("".join(f"{name}=igdit\n" for name in names))
    load_secrets()
    said = "s3://igdit/store: run `igdit track rebuild`"
    assert redact(said) == said
    assert not has_secret("s3://igdit/store/igdit-igdit")


@pytest.mark.parametrize(
    "name",
    [
        "PGPASSWORD",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "RAY_AUTH_TOKEN",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
        "HF_TOKEN",
        "API_KEY",
        "apikey",
        "API_KEY_2",
        "API_KEYS",
        "VAULT_SECRET_ID",
        "GITHUB_PAT",
        "DB_PASSWD",
        "DB_PASSPHRASE",
        "DB_PWD",
        "DB_PW",
        "CLIENT_SECRET",
        "HTTP_AUTHORIZATION",
    ],
)
def test_passwords_tokens_and_keys_in_the_file_are_hidden(name, file):
    file(f"{name}=hush-hush\n")
    load_secrets()
    assert redact("denied for hush-hush") == "denied for ***"


@pytest.mark.parametrize(
    "address",
    [
        "postgresql+psycopg://igdit:hush%40hush@db/igdit",
        "http://hush%40hush@host/igdit",
        "postgresql+psycopg://igdit@db/igdit?sslmode=require&sslpassword=hush%40hush",
        "http://host/igdit?token=hush%40hush&x=igdit",
    ],
)
def test_credentials_in_addresses_in_the_file_are_hidden_alone(address, file):
    file(f"IGDIT_TEST_ADDRESS={address}\n")
    load_secrets()
    said = "igdit at db, host: hush@hush or hush%40hush was refused"
    assert redact(said) == "igdit at db, host: *** or *** was refused"


def test_no_file_is_no_matter(monkeypatch):
    monkeypatch.delenv("IGDIT_SECRETS", raising=False)
    load_secrets()
    monkeypatch.setenv("IGDIT_SECRETS", "")
    load_secrets()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_read_is_refused_with_the_remedy(file, mode):
    path = file("A=hush-hush\n", mode)
    with pytest.raises(ValueError, match=f"mode {mode:04o}: chmod 600 {path}"):
        load_secrets()


def test_a_file_that_is_not_there_or_no_text_is_refused(file, tmp_path, monkeypatch):
    file("").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_secrets()
    monkeypatch.setenv("IGDIT_SECRETS", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="No such file"):
        load_secrets()
    monkeypatch.setenv("IGDIT_SECRETS", str(tmp_path))
    with pytest.raises(ValueError, match="IGDIT_SECRETS must be a file"):
        load_secrets()


def test_every_command_and_every_worker_loads_it(file, capsys):
    path = file("A=hush-hush\n", 0o644)
    assert main(["store", "ls"]) == 2
    assert f"chmod 600 {path}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="chmod 600"):
        build(Job("store", (), "{}"))
    with pytest.raises(ValueError, match="chmod 600"):
        train_worker(TrainJob("store", "{}", (1,)), 0, 1, lambda _: None)


@pytest.mark.parametrize(
    "name", ["PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN"]
)
def test_passwords_of_the_environment_are_hidden(name, monkeypatch):
    monkeypatch.setenv(name, "hush-hush")
    assert redact("denied for hush-hush") == "denied for ***"
    assert has_secret("--x=hush-hush")


def test_of_two_secrets_the_longer_is_hidden_whole(monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "hush")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hush-more")
    assert redact("hush-more") == "***"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:x@h/d", True),
        ("postgresql://u@h/d", False),
        ("s3://bucket/a", False),
        *(
            (f"postgresql+psycopg://u@h/d?sslmode=require&{name}=x", True)
            for name in (
                "password",
                "sslpassword",
                "PASSWORD",
                "pass%77ord",
                "token",
                "secret",
                "access_key",
                "key",
                "api_key",
                "aws_secret_access_key",
                "X-Amz-Signature",
            )
        ),
        *(
            (f"postgresql+psycopg://u@h/d?{same}", False)
            for same in (
                "sslkey=/etc/k",
                "passfile=/etc/p",
                "keepalives=1",
                "sslmode=require",
                "password=",
            )
        ),
        ("http://x@h", True),
        ("https://x@h:1/a", True),
        ("s3://x@bucket/a", True),
        ("http://h/a@b", False),
        ("/data/a?key=x", False),
        ("sqlite:////data/a@b:c.db", False),
        ("sqlite:///file:/data/x.db?mode=ro&uri=true", False),
    ],
)
def test_a_password_in_an_address_is_found(text, expected):
    assert has_secret(text) is expected


SECRET_STORE = "memory://KEY:s3cretword@bucket/x"


@pytest.fixture(autouse=True)
def _memory_stands_for_a_bucket(monkeypatch):
    """Of one process alone, it would be refused."""
    monkeypatch.setattr("pipelines.store.bucket.store.require_atomic_create", lambda bucket: None)


@pytest.mark.parametrize(
    ("words", "store", "code"),
    [
        (("store", "ls"), SECRET_STORE, 0),
        (("plan", "digits"), SECRET_STORE, 0),
        (("store", "ls"), "ftp://KEY:s3cretword@bucket/x", 2),
        (("status",), "ftp://s3:s3cretword@bucket/x", 2),
    ],
)
def test_the_stores_address_is_said_without_its_secret(
    words, store, code, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("IGDIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IGDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IGDIT_STORE", store)
    assert main(list(words)) == code
    said = "".join(capsys.readouterr())
    assert ":***@bucket/x" in said
    assert "s3cretword" not in said


@pytest.mark.parametrize("debug", ["", "1"])
def test_the_programs_last_words_are_redacted(debug, tmp_path):
    """As a message and as a traceback, which repeats what it is of."""
    environment = {
        **os.environ,
        "IGDIT_STORE": "ftp://KEY:s3cretword@bucket/x",
        "IGDIT_HOME": str(tmp_path),
        "IGDIT_DEBUG": debug,
    }
    command = [sys.executable, "-m", "pipelines", "store", "ls"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == (1 if debug else 2)
    assert ("Traceback" in run.stderr) == bool(debug)
    assert "ftp://KEY:***@bucket/x" in run.stderr
    assert "s3cretword" not in run.stdout + run.stderr


def test_log_records_are_redacted():
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "lost %s", (SECRET_STORE,), None)
    assert RedactingFormatter().format(record) == "lost memory://KEY:***@bucket/x"


def test_a_databases_password_is_written_down_nowhere(tmp_path, monkeypatch, caplog):
    """A study with passwords in its addresses: what it says and every file that it leaves."""
    monkeypatch.setenv("IGDIT_STORE", SECRET_STORE)
    monkeypatch.setenv("IGDIT_CACHE", str(tmp_path / "cache"))
    opened, home, screen = [], Home(tmp_path / "home"), io.StringIO()

    def open_instead(url: str) -> storage.RDBStorage:
        opened.append(url)
        return storage.RDBStorage(f"sqlite:///{tmp_path / 'elsewhere.db'}")

    monkeypatch.setattr("pipelines.study.ledger.open_storage", open_instead)
    url = "postgresql+psycopg://igdit:s3cretword@db.example/igdit"
    study = small_study(scales_per_training=1)
    options = StudyOptions(trials="1", storage=url)
    assert run_study(study, options, home, make_console(file=screen, width=300)) == 0
    assert opened == [url]
    assert "s3cretword" not in screen.getvalue() + caplog.text
    contents = tree(home.root)
    assert {"mlflow.db", "report", "activity"} <= set(contents)
    assert [name for name, text in contents.items() if text and b"s3cretword" in text] == []
    assert b"s3cretword" not in (tmp_path / "elsewhere.db").read_bytes()


def test_the_studys_database_comes_from_the_environment(tmp_path, monkeypatch):
    home = Home(tmp_path)
    monkeypatch.delenv("IGDIT_STUDY_STORAGE", raising=False)
    assert (home.study_storage, home.has_studies) == (f"sqlite:///{tmp_path}/study.db", False)
    monkeypatch.setenv("IGDIT_STUDY_STORAGE", "postgresql+psycopg://u@h/d")
    assert (home.study_storage, home.has_studies) == ("postgresql+psycopg://u@h/d", True)
