"""A pytest fixture that gives each test a tidelog broker of its own: in memory, on a free port, gone with the test.

Copy this file into the folder of your tests. It needs pytest, nothing else from outside Python, and the `tidelog` binary:
the one that $TIDELOG names, or else the one in PATH.
"""

import base64
import json
import os
import selectors
import shutil
import subprocess
import sys
import time

import pytest

# A start and a stop take milliseconds, a command as well; these are for a machine that is busy with something else.
READY_WITHIN_SECONDS = 30
STOP_WITHIN_SECONDS = 30
COMMAND_WITHIN_SECONDS = 60

# Standard inputs of all brokers that run.
_held_open = set()


def _let_go():
    for stdin in _held_open:
        stdin.close()


# A broker runs as long as somebody holds its standard input open. A process that a test forks (multiprocessing does, on
# Linux) has a copy of this end, and must not keep the broker alive when the test is gone.
os.register_at_fork(after_in_child=_let_go)


class CommandFailed(subprocess.CalledProcessError):
    """A `tidelog` command ended with another status than 0: `returncode` is the status, `stderr` says why."""

    def __str__(self):
        return f"{super().__str__()}\n{self.stderr}"


class Broker:
    """A broker that runs until `stop`, or until the process that started it ends in any way."""

    def __init__(self, binary, log):
        self.binary = binary
        self.log = log
        ready, ready_of_broker = os.pipe()
        try:
            with open(log, "wb") as stderr:
                self.process = subprocess.Popen(
                    [binary, "serve", "--memory", "--listen", "127.0.0.1:0", "--http", "off"]
                    + ["--ready-fd", str(ready_of_broker), "--until-stdin-closes"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    pass_fds=[ready_of_broker],
                )
            _held_open.add(self.process.stdin)
        finally:
            os.close(ready_of_broker)
        try:
            line = _read_line(ready, READY_WITHIN_SECONDS)
        finally:
            os.close(ready)
        if not line.endswith(b"\n"):
            self.process.kill()
            status = self.stop()
            pytest.fail(f"the broker did not become ready (status {status}):\n{self.log_text()}", pytrace=False)
        told = json.loads(line)
        self.pid = told["pid"]
        #: What clients connect to, with the fingerprint of the broker's key: `tidelog://HOST:PORT?pin=…`.
        self.address = f"tidelog://{told['listen']}?pin={told['pin']}"

    def command(self, *words, input=None):
        """Runs a client command of the binary and returns what it printed; `CommandFailed` if its status is not 0."""
        command = [self.binary, *words, "--server", self.address]
        done = subprocess.run(command, input=input, capture_output=True, timeout=COMMAND_WITHIN_SECONDS)
        if done.returncode != 0:
            raise CommandFailed(done.returncode, command, done.stdout, done.stderr.decode(errors="replace"))
        return done.stdout

    def create_stream(self, stream):
        """Makes a stream, if it is not there yet. `produce` does so by itself; readers that come first need it."""
        self.command("stream", "create", stream, "--if-not-exists")

    def produce(self, stream, records, producer=None, options=()):
        """Publishes, and returns when all is acknowledged: {"published": …, "duplicates": …, "last_offset": …}.

        A record is a text, bytes, or a dict as `consume` returns them, of which `value`, `key` and `headers` count
        (`value_base64`, `key_base64` for bytes). With a producer name a record's number in `records` is its sequence:
        the same records under the same name again are stored once. Without one every call stores all of them.
        """
        lines = "".join(json.dumps(_as_dict(record)) + "\n" for record in records)
        named = ["--producer", producer] if producer else []
        printed = self.command("produce", stream, "--ndjson", "--json", *named, *options, input=lines.encode())
        return json.loads(printed)

    def consume(self, stream, start="start", count=None, follow=False, options=()):
        """Reads to the stream's end as it is now, or waits for `count` records with `follow`: a list of dicts.

        A dict has `offset`, `time`, `producer`, `sequence`, `key`, `headers` and `value` (`value_base64` if the value is
        not text). `start` is "start", "end", an offset, -N for the last N, or a time. A stream that is not there is a
        `CommandFailed` with status 4.
        """
        words = ["consume", stream, "--json", "--from", str(start), *options]
        words += ["--follow"] if follow else []
        words += ["--count", str(count)] if count is not None else []
        return [json.loads(line) for line in self.command(*words).splitlines()]

    def stop(self):
        """Ends the broker in order and returns its exit status, 0 if all is well."""
        _held_open.discard(self.process.stdin)
        self.process.stdin.close()
        try:
            return self.process.wait(timeout=STOP_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def log_text(self):
        """What the broker wrote to standard error."""
        return self.log.read_text(errors="replace")


def _as_dict(record):
    if isinstance(record, bytes):
        return {"value_base64": base64.b64encode(record).decode()}
    return {"value": record} if isinstance(record, str) else record


def _read_line(pipe, within_seconds):
    """What comes until the end of the line, of the pipe or of the time."""
    deadline = time.monotonic() + within_seconds
    text = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not text.endswith(b"\n") and selector.select(max(0, deadline - time.monotonic())):
            piece = os.read(pipe, 4096)
            if not piece:
                break
            text += piece
    return text


@pytest.fixture(scope="session")
def tidelog_binary():
    """The absolute path of the `tidelog` binary."""
    named = os.environ.get("TIDELOG")
    found = shutil.which(named or "tidelog")
    if found is None and named:
        pytest.fail(f"TIDELOG={named} is not a program that can be run", pytrace=False)
    if found is None:
        pytest.fail("there is no `tidelog` in PATH; set TIDELOG to the binary's path", pytrace=False)
    return os.path.abspath(found)


@pytest.fixture
def start_broker(tidelog_binary, tmp_path):
    """A function that starts one more broker. They know nothing of each other, and end with the test."""
    brokers = []

    def start():
        broker = Broker(tidelog_binary, tmp_path / f"tidelog-{len(brokers)}.log")
        brokers.append(broker)
        return broker

    yield start
    failed = []
    for broker in brokers:
        status = broker.stop()
        # pytest shows this if the test has failed.
        print(f"--- the broker {broker.address}\n{broker.log_text()}", file=sys.stderr)
        if status != 0:
            failed.append(f"the broker {broker.address} ended with status {status} instead of 0")
    if failed:
        pytest.fail("\n".join(failed), pytrace=False)


@pytest.fixture
def broker(start_broker):
    """A broker for this test alone."""
    return start_broker()
