"""The bus with a real proxy: nobody waits for anybody."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from qmux.bus import BATCH, MAX_MESSAGE_BYTES, QUEUE_MESSAGES, BusProxy, Publisher, Subscriber, endpoints
from qmux.errors import StartError
from qmux.pool.rows import BusMessage, Delta
from tests import waiting
from tests.aio import until

STOPPED = Path(__file__).with_name("bus_subscriber.py")


@pytest.fixture
def directory() -> Iterator[str]:
    """0700, and short: the path of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="qmux-bus-") as made:
        yield made


@pytest.fixture
def proxy(directory: str) -> Iterator[BusProxy]:
    made = BusProxy(directory, os.getuid(), os.getgid())
    yield made
    made.stop()


def message(number: int, slot: int = 1, padding: int = 0) -> Delta:
    return Delta(slot, number, (), (), {"x" * padding: 1} if padding else {})


class Heard:
    """A subscriber and what it heard."""

    def __init__(self, directory: str) -> None:
        self.messages: list[BusMessage] = []
        self.subscriber = Subscriber(endpoints(directory)[1], self.messages.append)

    @property
    def epochs(self) -> list[int]:
        return [each.epoch for each in self.messages]


async def connected(publisher: Publisher, *heard: Heard) -> None:
    """Publish until every subscriber has heard something: before, messages are lost by design."""

    def everybody() -> bool:
        publisher.send(message(-1))
        return all(each.messages for each in heard)

    await until(everybody, 30.0, "the bus to connect")
    publisher.send(message(-2))
    await until(lambda: all(each.epochs[-1] == -2 for each in heard), 30.0)
    for each in heard:
        each.messages.clear()


async def everybody_hears_everybody(directory: str) -> None:
    publishers = [Publisher(endpoints(directory)[0]) for _ in range(3)]
    heard = [Heard(directory) for _ in range(3)]
    for publisher in publishers:
        await connected(publisher, *heard)
    for number in range(100):
        for slot, publisher in enumerate(publishers):
            publisher.send(message(number, slot))
    await until(lambda: all(len(each.messages) == 300 for each in heard))
    for each in heard:
        for slot in range(3):
            assert [one.epoch for one in each.messages if one.slot == slot] == list(range(100))
        each.subscriber.close()
    for publisher in publishers:
        assert publisher.dropped == 0
        publisher.close()


async def test_everybody_hears_everybody(proxy: BusProxy, directory: str) -> None:
    await everybody_hears_everybody(directory)


def test_files_are_the_owners_alone(proxy: BusProxy, directory: str) -> None:
    assert stat.S_IMODE(Path(directory).stat().st_mode) == 0o700
    for endpoint in endpoints(directory):
        path = Path(endpoint.removeprefix("ipc://"))
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (path.stat().st_uid, path.stat().st_gid) == (os.getuid(), os.getgid())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_files_belong_to_the_user_that_workers_drop_to(directory: str) -> None:
    proxy = BusProxy(directory, 65534, 65534)
    try:
        for endpoint in endpoints(directory):
            assert Path(endpoint.removeprefix("ipc://")).stat().st_uid == 65534
    finally:
        proxy.stop()


async def test_a_flood_never_blocks_the_publisher(proxy: BusProxy, directory: str) -> None:
    """A subscriber that never reads: the publisher goes on at its own pace, and memory stays bounded."""
    publisher = Publisher(endpoints(directory)[0])
    heard = Heard(directory)
    await connected(publisher, heard)
    longest_s = 0.0
    started = time.monotonic()
    for number in range(20_000):  # without a turn of the loop: the subscriber of this process does not read
        before = time.monotonic()
        publisher.send(message(number, padding=1000))
        longest_s = max(longest_s, time.monotonic() - before)
    assert time.monotonic() - started < 60
    assert longest_s < 5.0
    await until(lambda: heard.messages)
    await asyncio.sleep(0)
    publisher.send(message(99_999))
    publisher.close()
    heard.subscriber.close()
    assert len(heard.messages) < 20_000


def test_what_the_proxy_does_not_take_is_counted(directory: str) -> None:
    """A stand-in for a proxy that subscribes and then does not read."""
    context = zmq.Context()
    inlet = context.socket(zmq.XSUB)
    inlet.setsockopt(zmq.RCVHWM, 1)
    inlet.bind(endpoints(directory)[0])
    inlet.send(b"\x01")
    publisher = Publisher(endpoints(directory)[0])
    waiting.until(lambda: publisher.send(message(1)) or inlet.poll(5), "the first arrives")
    assert publisher.dropped == 0
    waiting.until(lambda: publisher.send(message(1, padding=10_000)) or publisher.dropped, "one is dropped", every_s=0)
    publisher.close()
    context.destroy(0)


@pytest.fixture
def other_process(directory: str) -> Iterator[subprocess.Popen[bytes]]:
    """A subscriber of its own, whose output is there to be read without waiting."""
    command = [sys.executable, str(STOPPED), endpoints(directory)[1]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        yield process
        process.kill()


async def test_a_stopped_subscriber_delays_nobody(
    proxy: BusProxy, directory: str, other_process: subprocess.Popen[bytes]
) -> None:
    publisher = Publisher(endpoints(directory)[0])
    heard = Heard(directory)
    await connected(publisher, heard)

    def heard_there() -> bytes | None:
        publisher.send(message(0))
        assert other_process.stdout is not None
        return other_process.stdout.read(6)

    assert await until(heard_there, 20.0, "the other process to hear") == b"heard\n"
    os.kill(other_process.pid, signal.SIGSTOP)
    heard.messages.clear()
    slowest_s = 0.0
    for number in range(1, 10 * QUEUE_MESSAGES, 100):
        for each in range(number, number + 100):
            publisher.send(message(each, padding=500))
        sent_at = time.monotonic()
        await until(lambda last=number + 99: heard.messages[-1:] and heard.messages[-1].epoch == last)  # type: ignore[misc]
        slowest_s = max(slowest_s, time.monotonic() - sent_at)
    assert slowest_s < 5.0
    assert publisher.dropped == 0
    assert [epoch for epoch in heard.epochs if epoch] == list(range(1, 10 * QUEUE_MESSAGES + 1))
    heard.subscriber.close()
    publisher.close()


async def test_a_message_above_the_limit_is_dropped_and_others_go_on(proxy: BusProxy, directory: str) -> None:
    publisher = Publisher(endpoints(directory)[0])
    heard = Heard(directory)
    other = Publisher(endpoints(directory)[0])
    await connected(publisher, heard)
    await connected(other, heard)
    publisher.send(message(1, padding=MAX_MESSAGE_BYTES + 1))
    other.send(message(2))
    await until(lambda: 2 in heard.epochs)

    def goes_on() -> bool:
        publisher.send(message(3))
        return 3 in heard.epochs

    await until(goes_on, 30.0, "its connection, which was closed, to be made anew")
    assert 1 not in heard.epochs
    for each in (publisher, other):
        each.close()
    heard.subscriber.close()


async def test_the_largest_allowed_message_arrives(proxy: BusProxy, directory: str) -> None:
    publisher = Publisher(endpoints(directory)[0])
    heard = Heard(directory)
    await connected(publisher, heard)
    padding = MAX_MESSAGE_BYTES - len(msgspec.msgpack.encode(message(1, padding=70_000))) + 70_000
    publisher.send(message(1, padding=padding))
    await until(lambda: heard.epochs == [1])
    heard.subscriber.close()
    publisher.close()


async def test_what_does_not_decode_is_counted_and_skipped(
    proxy: BusProxy, directory: str, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(endpoints(directory)[0])
    heard = Heard(directory)
    await connected(publisher, heard)
    garbage = [b"", b"\x00", b"\xff" * 100, b"\x95\xa5delta", b"\x96\xa5delta\x01\x01\x90\x90\x81\xa1\xff\x01"]
    garbage.append(b"\x91" * 100_000)
    for each in garbage:
        publisher._socket.send(each)
    publisher.send(message(5))
    await until(lambda: heard.epochs == [5])
    assert heard.subscriber.invalid == len(garbage)
    heard.subscriber.close()
    publisher.close()
    assert "bus message cannot be decoded" in caplog.text


async def test_the_proxy_survives_garbage(proxy: BusProxy, directory: str) -> None:
    """Bytes that are no ZMTP, on both sockets, from connections that end in the middle."""
    for endpoint in endpoints(directory):
        for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 9 + b"\x7f\x03", secrets.token_bytes(100_000)):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(5)
                sock.connect(endpoint.removeprefix("ipc://"))
                try:
                    sock.sendall(garbage)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # refused already
    await everybody_hears_everybody(directory)


async def test_a_failing_callback_loses_only_its_own_message(proxy: BusProxy, directory: str) -> None:
    """The descriptor signals edges only: a defect in one message must not leave the rest unread for ever."""
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
    heard: list[int] = []

    def on_message(received: BusMessage) -> None:
        if received.epoch == 3:
            raise RuntimeError("a defect")
        heard.append(received.epoch)

    publisher = Publisher(endpoints(directory)[0])
    subscriber = Subscriber(endpoints(directory)[1], on_message)

    def first() -> list[int]:
        publisher.send(message(1))
        return heard

    await until(first)
    for number in range(2, 2 + 2 * BATCH):
        publisher.send(message(number))
    await until(lambda: heard[-1] == 1 + 2 * BATCH)
    assert [str(failure) for failure in failures] == ["a defect"]
    assert 3 not in heard
    subscriber.close()
    publisher.close()


async def test_closing_from_the_callback(proxy: BusProxy, directory: str) -> None:
    publisher = Publisher(endpoints(directory)[0])
    heard: list[int] = []

    def on_message(received: BusMessage) -> None:
        heard.append(received.epoch)
        subscriber.close()
        subscriber.close()

    subscriber = Subscriber(endpoints(directory)[1], on_message)

    def sent() -> list[int]:
        publisher.send(message(7))
        return heard

    await until(sent)
    publisher.send(message(8))
    await asyncio.sleep(0.05)  # nothing must happen
    assert heard == [7]
    publisher.close()


async def test_a_flood_leaves_the_loop_its_turns(proxy: BusProxy, directory: str) -> None:
    publisher = Publisher(endpoints(directory)[0])
    heard = Heard(directory)
    await connected(publisher, heard)
    for number in range(1, QUEUE_MESSAGES):
        publisher.send(message(number))
    largest, seen = 0, 0
    while len(heard.messages) < 5 * BATCH:
        await asyncio.sleep(0)
        largest, seen = max(largest, len(heard.messages) - seen), len(heard.messages)
    assert 0 < largest <= BATCH
    heard.subscriber.close()
    publisher.close()


def test_stop_frees_everything(directory: str) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    BusProxy(directory, os.getuid(), os.getgid()).stop()  # what is made once for all
    before = opened()
    for _ in range(3):
        proxy = BusProxy(directory, os.getuid(), os.getgid())
        publisher = Publisher(endpoints(directory)[0])
        publisher.send(message(1))
        publisher.close()
        proxy.stop()
        proxy.stop()
    assert opened() == before
    assert not [thread for thread in threading.enumerate() if thread.name == "bus"]


async def test_a_socket_that_a_killed_supervisor_left_is_replaced(directory: str) -> None:
    for endpoint in endpoints(directory):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(endpoint.removeprefix("ipc://"))
    proxy = BusProxy(directory, os.getuid(), os.getgid())
    await everybody_hears_everybody(directory)
    proxy.stop()


@pytest.mark.parametrize("where", ["missing", "x" * 120])
def test_a_directory_where_it_cannot_be(directory: str, where: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StartError, match="the bus between the workers cannot be opened there"):
        BusProxy(f"{directory}/{where}", os.getuid(), os.getgid())
    assert len(os.listdir("/proc/self/fd")) == before
