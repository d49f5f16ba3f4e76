"""What the shop's program promises, tested against a real broker: each test has one of its own."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import shop

ORDERS = [
    {"order": str(1000 + number), "customer": f"customer-{number % 7}", "cents": str(199 * number)}
    for number in range(200)
]


def write(file, orders, with_header=True):
    rows = csv.DictWriter(file, ["order", "customer", "cents"])
    if with_header:
        rows.writeheader()
    rows.writerows(orders)
    file.flush()


@pytest.fixture
def csv_file(tmp_path):
    """Writes a day's orders, as far as they are known, and returns the file's path."""
    path = tmp_path / "2024-05-01.csv"

    def write_file(orders):
        with open(path, "w", newline="") as file:
            write(file, orders)
        return path

    return write_file


def orders_in(broker):
    return [json.loads(record["value"]) for record in broker.consume("orders")]


def test_every_order_is_published_in_order_with_its_customer_as_key(broker, csv_file):
    shop.publish(csv_file(ORDERS), broker.address)
    records = broker.consume("orders")
    assert [json.loads(record["value"]) for record in records] == ORDERS
    assert [record["key"] for record in records] == [order["customer"] for order in ORDERS]
    # Dense from 0: nothing is missing in between.
    assert [record["offset"] for record in records] == list(range(len(ORDERS)))
    assert {record["producer"] for record in records} == {"shop-2024-05-01"}


def test_a_run_that_got_half_the_file_and_one_that_gets_all_of_it_publish_each_order_once(broker, csv_file):
    shop.publish(csv_file(ORDERS[:100]), broker.address)
    shop.publish(csv_file(ORDERS), broker.address)
    shop.publish(csv_file(ORDERS), broker.address)
    assert orders_in(broker) == ORDERS


def test_a_run_that_is_killed_and_the_next_one_publish_each_order_once(broker, csv_file, tmp_path):
    # A file that is still being written when the program dies: a pipe under the file's name.
    folder = tmp_path / "growing"
    folder.mkdir()
    growing = folder / "2024-05-01.csv"
    os.mkfifo(growing)
    broker.create_stream("orders")
    command = [sys.executable, pathlib.Path(shop.__file__), growing, broker.address]
    with subprocess.Popen(command) as run, open(growing, "w", newline="") as file:
        write(file, ORDERS[:100])
        # Until they are stored, so that it dies in the middle.
        assert len(broker.consume("orders", count=100, follow=True)) == 100
        write(file, ORDERS[100:150], with_header=False)
        run.kill()
    assert run.returncode == -signal.SIGKILL
    shop.publish(csv_file(ORDERS), broker.address)
    assert orders_in(broker) == ORDERS


def test_without_a_name_the_second_run_doubles_what_the_first_has_published(broker, csv_file):
    shop.publish_naively(csv_file(ORDERS[:100]), broker.address)
    shop.publish_naively(csv_file(ORDERS), broker.address)
    assert orders_in(broker) == ORDERS[:100] + ORDERS


def test_what_is_on_one_broker_is_on_no_other(broker, start_broker, csv_file):
    other = start_broker()
    shop.publish(csv_file(ORDERS), broker.address)
    with pytest.raises(subprocess.CalledProcessError) as not_there:
        other.consume("orders")
    assert not_there.value.returncode == 4
    # The same names are free there.
    shop.publish(csv_file(ORDERS[:3]), other.address)
    assert orders_in(other) == ORDERS[:3]
    assert orders_in(broker) == ORDERS


def test_another_day_under_the_same_name_is_refused_and_nothing_of_it_stored(broker, csv_file):
    shop.publish(csv_file(ORDERS[:100]), broker.address)
    with pytest.raises(RuntimeError, match="ended with 5"):
        shop.publish(csv_file(ORDERS[100:]), broker.address)
    assert orders_in(broker) == ORDERS[:100]
