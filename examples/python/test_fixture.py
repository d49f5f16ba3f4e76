"""The fixture itself: what it does when tests fail, brokers die, and pytest is killed."""

import json
import multiprocessing
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

CONFTEST = pathlib.Path(__file__).with_name("conftest.py")
WITHIN_SECONDS = 60


@pytest.fixture
def pytest_with(tmp_path, tidelog_binary):
    """Starts a pytest of its own on some tests, beside a copy of the fixture; its trust files go to `tmp_path/run`."""

    def start(tests, **environment):
        folder = tmp_path / "inner"
        folder.mkdir()
        shutil.copy(CONFTEST, folder)
        (folder / "test_inner.py").write_text(textwrap.dedent(tests))
        environment = {"TIDELOG": tidelog_binary, "XDG_RUNTIME_DIR": str(tmp_path / "run"), **environment}
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", folder, folder]
        command += ["--basetemp", tmp_path / "inner-temporary"]
        return subprocess.Popen(
            command, env={**os.environ, **environment}, cwd=folder, stdout=subprocess.PIPE, text=True
        )

    return start


def ended(process):
    """Its status and what it printed."""
    printed, _ = process.communicate(timeout=WITHIN_SECONDS)
    return process.returncode, printed


def wait_for_end(pid_descriptor):
    assert select.select([pid_descriptor], [], [], WITHIN_SECONDS)[0], "it still runs"
    os.close(pid_descriptor)


def test_bytes_texts_and_dicts_go_in_and_come_out(broker):
    records = ["text\nof two lines", b"\xff\x00", {"key": "k", "value": "v", "headers": {"h": "1"}}]
    summary = broker.produce("all", records, producer="p")
    assert summary == {"stream": "all", "published": 3, "duplicates": 0, "last_offset": 2}
    assert broker.produce("all", records, producer="p")["duplicates"] == 3
    text, encoded, whole = broker.consume("all")
    assert (text["value"], text["producer"], text["sequence"]) == ("text\nof two lines", "p", 1)
    assert encoded["value_base64"] == "/wA="
    assert (whole["key"], whole["value"], whole["headers"]) == ("k", "v", {"h": "1"})
    # What was read can be published as it is.
    broker.produce("copy", broker.consume("all"), producer="copier")
    assert [record["key"] for record in broker.consume("copy", start=-2, count=1)] == [None]


def test_a_command_that_fails_says_why(broker):
    with pytest.raises(subprocess.CalledProcessError, match="nowhere") as failed:
        broker.consume("nowhere")
    assert failed.value.returncode == 4


def test_the_broker_is_gone_when_it_is_stopped(start_broker):
    broker = start_broker()
    descriptor = os.pidfd_open(broker.pid)
    assert broker.stop() == 0
    wait_for_end(descriptor)


def test_a_process_that_was_forked_does_not_keep_it(start_broker):
    broker = start_broker()
    forked = multiprocessing.get_context("fork").Process(target=signal.pause)
    forked.start()
    try:
        assert broker.stop() == 0
    finally:
        forked.kill()
        forked.join()


def test_the_log_is_shown_when_a_test_fails_and_only_then(pytest_with):
    status, printed = ended(
        pytest_with(
            """
            def test_that_passes(broker):
                broker.produce("passing", ["record"])

            def test_that_fails(broker):
                broker.produce("failing", ["record"])
                assert broker.consume("failing") == []
            """
        )
    )
    assert status == 1 and "1 failed, 1 passed" in printed, printed
    assert printed.count("tidelog is ready on") == 1, printed


def test_a_broker_that_died_fails_the_test_that_had_it(pytest_with):
    status, printed = ended(
        pytest_with(
            """
            import os, pathlib, re, signal

            def test_that_passes_by_itself(broker):
                os.kill(broker.pid, signal.SIGKILL)
                broker.process.wait()
                # What root's brokers leave for the whole machine, and a killed one can't take back.
                port = re.search(r":([0-9]+)\\?", broker.address)[1]
                pathlib.Path(f"/run/tidelog/{port}.json").unlink(missing_ok=True)
            """
        )
    )
    assert status == 1 and "1 passed, 1 error" in printed, printed
    assert "ended with status -9 instead of 0" in printed


@pytest.mark.parametrize(
    "environment, sentence",
    [
        ({"TIDELOG": "/nowhere/tidelog"}, "TIDELOG=/nowhere/tidelog is not a program that can be run"),
        ({"TIDELOG": "", "PATH": "/nowhere"}, "there is no `tidelog` in PATH; set TIDELOG to the binary's path"),
        ({"TIDELOG": shutil.which("false")}, "the broker did not become ready (status 1)"),
    ],
)
def test_without_a_broker_to_start_it_says_so(pytest_with, environment, sentence):
    status, printed = ended(pytest_with("def test_in_vain(broker): pass", **environment))
    assert status == 1 and sentence in printed, printed


def test_the_broker_goes_when_pytest_is_killed(pytest_with, tmp_path):
    told = tmp_path / "told"
    os.mkfifo(told)
    running = pytest_with(
        """
        import json, os, signal

        def test_that_hangs(broker):
            broker.produce("orders", ["one"])
            with open(os.environ["TOLD"], "w") as told:
                json.dump(broker.pid, told)
            signal.pause()
        """,
        TOLD=str(told),
    )
    pid = json.loads(told.read_text())
    descriptor = os.pidfd_open(pid)
    assert len(list((tmp_path / "run" / "tidelog").iterdir())) == 1
    running.kill()
    running.communicate()
    wait_for_end(descriptor)
    # In order: it has taken back what it had left for other programs.
    assert list((tmp_path / "run" / "tidelog").iterdir()) == []
