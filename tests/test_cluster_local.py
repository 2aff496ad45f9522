"""The local cluster's parts without Ray: services with outages, processes, files of secrets."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading

import pytest

from cluster.local import BUCKET, LocalCluster, main
from cluster.processes import Process
from tests.equipment.processes import is_loopback, listeners


@pytest.fixture
def cluster(short_folder):
    made = LocalCluster(short_folder / "c")
    yield made
    made.stop()


def s3_client(cluster):
    boto3 = pytest.importorskip("boto3")
    from botocore.config import Config

    found = dict(line.split("=", 1) for line in cluster.secrets.read_text().splitlines())
    return boto3.client(
        "s3",
        endpoint_url=cluster.s3.url,
        region_name="us-east-1",
        aws_access_key_id=found["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=found["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"max_attempts": 0}, connect_timeout=5, read_timeout=30),
    )


def test_an_s3_that_was_away_has_what_it_had_and_of_equal_writes_one_wins(cluster):
    pytest.importorskip("moto")
    cluster.start(0, services=("s3",))
    client = s3_client(cluster)
    client.put_object(Bucket=BUCKET, Key="a", Body=b"kept")
    port = cluster.s3.port
    cluster.s3.stop()
    with pytest.raises(Exception, match="Could not connect"):
        client.get_object(Bucket=BUCKET, Key="a")
    cluster.s3.start()
    assert cluster.s3.port == port
    assert client.get_object(Bucket=BUCKET, Key="a")["Body"].read() == b"kept"

    won, lost, begin = [], [], threading.Barrier(8)

    def write(number):
        begin.wait()
        try:
            client.put_object(Bucket=BUCKET, Key="b", Body=str(number).encode(), IfNoneMatch="*")
        except client.exceptions.ClientError as error:
            lost.append(error.response["ResponseMetadata"]["HTTPStatusCode"])
        else:
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(won) == 1
    assert lost == [412] * 7
    assert client.get_object(Bucket=BUCKET, Key="b")["Body"].read() == str(won[0]).encode()

    # Another object of the folder, as another command has it, finds it and can end it.
    other = LocalCluster(cluster.folder)
    assert other.s3.running
    assert other.client_environment["IGDIT_STORE"] == f"s3://{BUCKET}/store"
    pids = [other.s3.process.pid, other.s3.helper.pid]
    assert all(is_loopback(address) for address in listeners(pids))
    other.stop()
    assert not cluster.s3.running


@pytest.mark.slow
def test_a_postgresql_wants_its_password_and_keeps_its_data(cluster):
    psycopg = pytest.importorskip("psycopg")
    if shutil.which("initdb") is None:
        pytest.skip("no PostgreSQL here")
    folders = {
        path: path.stat().st_mode for path in (cluster.folder.parent, *cluster.folder.parents)
    }
    cluster.start(0, services=("postgres",))
    assert {path: path.stat().st_mode for path in folders} == folders
    assert cluster.folder.stat().st_mode & 0o077 == 0
    url = cluster.postgres.url.replace("+psycopg", "")
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(url)
    with psycopg.connect(url, password=cluster.postgres.password) as connection:
        connection.execute("create table t (x int)")
    cluster.postgres.stop()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(url, password=cluster.postgres.password)
    cluster.postgres.start()
    with psycopg.connect(url, password=cluster.postgres.password) as connection:
        assert connection.execute("select count(*) from t").fetchone() == (0,)
    data = cluster.postgres.data
    assert data.stat().st_mode & 0o077 == 0
    assert not (cluster.folder / "postgres.password").exists()
    assert not (data.parent / "password").exists()
    cluster.postgres.stop()
    cluster.postgres.delete()
    assert not data.exists()


def test_what_is_secret_is_its_owners_only(cluster):
    cluster.start(0)
    cluster._known_secrets()
    for path in (cluster.token, cluster.secrets):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(cluster.folder.stat().st_mode) == 0o700
    before = cluster.token.read_text()
    cluster.stop()
    cluster.start(0)
    assert cluster.token.read_text() == before


def test_a_process_is_known_by_its_start_and_ended_with_all_below_it(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    log = tmp_path / "log"
    process = Process.start([sys.executable, "-c", code], log, {})
    while "ready" not in log.read_text():
        assert process.alive
    (child,) = process.below()
    assert not Process(process.pid, "0").alive
    process.kill()
    assert not process.alive
    assert not child.alive
    process.end()  # of one that is gone is no matter
    assert not Process(os.getpid(), "").alive


def test_a_program_that_does_not_start_says_why(cluster, monkeypatch):
    pytest.importorskip("moto")
    monkeypatch.setattr("cluster.services.S3.command", lambda _: [sys.executable, "-c", "1/0"])
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        cluster.start(0, services=("s3",))
    assert not cluster.s3.helper.alive


def test_the_command_line_says_what_is_wrong_and_needs_nothing_to_be_there(tmp_path, capsys):
    folder = ["--folder", str(tmp_path / "none")]
    for words in (["down", *folder], ["status", *folder]):
        assert main(words) == 0
    with pytest.raises(SystemExit):
        main(["up", *folder, "--nodes", "0"])
    assert "at least 1" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_importing_it_starts_and_loads_nothing():
    code = "import cluster.local, sys; print(*{'ray', 'moto', 'boto3', 'torch'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
