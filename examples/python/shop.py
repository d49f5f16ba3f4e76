"""A program as it might be under test: publishes a shop's orders of a day.

    python shop.py 2024-05-01.csv tidelog://HOST:PORT?pin=…

Each row of the file becomes a record of the stream `orders`, with the customer as its key. The file's name is part of the
producer's name, and a row's number is its sequence: whatever becomes of a run, the next one goes on where it stopped.
"""

import csv
import json
import os
import pathlib
import subprocess
import sys


def publish(path, server):
    """Publishes all rows, each exactly once over all runs, and returns when they are stored."""
    _publish(path, server, ["--producer", f"shop-{pathlib.Path(path).stem}"])


def publish_naively(path, server):
    """The same without a name, as one would write it first. A second run stores every row a second time."""
    _publish(path, server, [])


def _publish(path, server, options):
    command = [os.environ.get("TIDELOG", "tidelog"), "produce", "orders", "--ndjson", "--server", server, *options]
    try:
        # Line by line, so that an order is on its way as soon as it is read.
        with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, bufsize=1) as produce:
            with open(path, newline="") as file:
                for order in csv.DictReader(file):
                    record = {"key": order["customer"], "value": json.dumps(order)}
                    print(json.dumps(record), file=produce.stdin)
    except BrokenPipeError:
        # It has ended early, and its status says why.
        pass
    if produce.returncode != 0:
        raise RuntimeError(f"not all orders of {path} are published: `tidelog produce` ended with {produce.returncode}")


if __name__ == "__main__":
    publish(sys.argv[1], sys.argv[2])
