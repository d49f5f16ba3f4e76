"""Attacks a broker with an independent QUIC client, aioquic, by everything that a hostile peer can think of.

    attack.py HOST PORT STREAM_ID --seconds S --connections N --seed SEED [--only ATTACK,ATTACK]

N attackers run at one time; each makes one attack after the other on connections of its own. STREAM_ID is a stream with a
backlog. Prints one JSON object at its end: how often each attack was begun, and how often a connection stood.
"""

import argparse
import asyncio
import json
import os
import random
import ssl
import struct
import time

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted

HELLO, REQUEST, PUBLISH = 1, 3, 16


def frame(kind, body, length=None):
    """A frame; with another length than that of its body if it is to lie."""
    return struct.pack("<IBBH", len(body) if length is None else length, kind, 0, 0) + body


def request(number, op, **fields):
    return frame(REQUEST, json.dumps({"id": number, "op": op, **fields}).encode())


GOOD_HELLO = frame(HELLO, b'{"versions":[1],"client":"attack"}')
ATTACH = request(1, "attach_producer", producer=0, epoch=0, attempt="00" * 16, accepted=True)


class Peer(asyncio.DatagramProtocol):
    """One QUIC connection whose datagrams are sent, held back or ignored as the attack wants."""

    def __init__(self, args, alpn=b"tidelog/1", window=1 << 20):
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=[alpn.decode()], verify_mode=ssl.CERT_NONE,
            max_data=window, max_stream_data=window, server_name="localhost", idle_timeout=30.0,
        )
        self.quic = QuicConnection(configuration=configuration)
        self.address = (args.host, args.port)
        self.stood = asyncio.Event()
        self.gone = asyncio.Event()
        self.deaf = False
        self.timer = None
        self.transport = None

    async def open(self):
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, remote_addr=self.address)
        self.quic.connect(self.address, now=loop.time())
        self.flush()
        return self

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, _address):
        if self.deaf:
            return
        try:
            self.quic.receive_datagram(data, self.address, now=asyncio.get_running_loop().time())
        except Exception:  # What aioquic makes of its own broken state is of no interest.
            self.gone.set()
            return
        while (event := self.quic.next_event()) is not None:
            if isinstance(event, HandshakeCompleted):
                self.stood.set()
            elif isinstance(event, ConnectionTerminated):
                self.gone.set()
        self.flush()

    def error_received(self, _error):
        pass

    def flush(self):
        if self.transport is None or self.transport.is_closing():
            return
        loop = asyncio.get_running_loop()
        try:
            for data, _address in self.quic.datagrams_to_send(now=loop.time()):
                self.transport.sendto(data)
        except Exception:
            self.gone.set()
            return
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        at = self.quic.get_timer()
        if at is not None and not self.deaf:
            self.timer = loop.call_at(at, self.tick)

    def tick(self):
        self.timer = None
        if not self.deaf:
            try:
                self.quic.handle_timer(now=asyncio.get_running_loop().time())
            except Exception:
                self.gone.set()
                return
            self.flush()

    def send(self, stream, data, fin=False):
        self.quic.send_stream_data(stream, data, fin)
        self.flush()

    def close(self):
        """Gone without a word."""
        if self.timer is not None:
            self.timer.cancel()
        if self.transport is not None:
            self.transport.abort()

    async def wait(self, seconds):
        """Sleeps so long, or until the broker ends the connection."""
        try:
            await asyncio.wait_for(self.gone.wait(), seconds)
        except asyncio.TimeoutError:
            pass


class Attacker:
    def __init__(self, args, rng, counts):
        self.args, self.rng, self.counts = args, rng, counts
        self.until = time.monotonic() + args.seconds
        self.peers = []

    def left(self):
        return max(0.0, self.until - time.monotonic())

    def pause(self, most):
        return min(self.left(), self.rng.uniform(0.05, most))

    async def run(self):
        attacks = [getattr(self, name) for name in self.args.only.split(",")]
        turn = self.rng.randrange(len(attacks))
        while self.left() > 0:
            attack = attacks[turn % len(attacks)]
            turn += 1
            self.counts[attack.__name__] = self.counts.get(attack.__name__, 0) + 1
            try:
                await attack()
            except (OSError, ConnectionError, AssertionError, ValueError, KeyError):
                pass
            for peer in self.peers:
                peer.close()
            self.peers.clear()

    async def peer(self, **options):
        peer = Peer(self.args, **options)
        self.peers.append(peer)
        return await peer.open()

    async def standing(self, hello=GOOD_HELLO, **options):
        """A connection that has shaken hands, and said hello unless that is left to the attack."""
        peer = await self.peer(**options)
        try:
            await asyncio.wait_for(peer.stood.wait(), min(5.0, self.left() + 0.1))
        except asyncio.TimeoutError:
            raise ConnectionError("no handshake")
        self.counts["stood"] = self.counts.get("stood", 0) + 1
        if hello:
            peer.send(0, hello)
        return peer

    async def half_open(self):
        """Begins a handshake and never goes on; answers a Retry, so that it gets further than a forged address."""
        peer = await self.peer()
        await asyncio.sleep(min(0.05, self.left()))
        peer.deaf = True
        await peer.wait(self.pause(6.0))

    async def first_packets_only(self):
        """A first packet, again and again, always of another connection."""
        for _ in range(20):
            peer = await self.peer()
            peer.deaf = True
            await asyncio.sleep(min(0.02, self.left()))

    async def noise(self):
        """Datagrams that are no QUIC, or look like some."""
        peer = await self.peer()
        for _ in range(100):
            data = bytes([self.rng.choice([0x40, 0xC0, 0xE0, 0xFF, 0x00])]) + self.rng.randbytes(self.rng.randrange(1, 1200))
            peer.transport.sendto(data)
            if self.rng.random() < 0.1:
                await asyncio.sleep(0)

    async def wrong_protocol(self):
        peer = await self.peer(alpn=self.rng.choice([b"h3", b"hq-interop", b"tidelog/2"]))
        await peer.wait(self.pause(1.0))

    async def silent(self):
        """Shakes hands and says nothing."""
        peer = await self.standing(hello=None)
        await peer.wait(self.pause(8.0))

    async def byte_a_second(self):
        """A hello, and later a publish, of which a byte comes each second."""
        peer = await self.standing(hello=None if self.rng.random() < 0.5 else GOOD_HELLO)
        stream, data = (0, GOOD_HELLO) if peer.quic._streams.get(0) is None else (4, ATTACH)
        for byte in data:
            if self.left() == 0 or peer.gone.is_set():
                return
            peer.send(stream, bytes([byte]))
            await peer.wait(min(1.0, self.left()))

    async def garbage_hello(self):
        peer = await self.standing(hello=None)
        kind = self.rng.randrange(3)
        if kind == 0:
            peer.send(0, self.rng.randbytes(self.rng.randrange(8, 4000)))
        elif kind == 1:
            peer.send(0, frame(HELLO, b"[" * 60_000))
        else:
            peer.send(0, frame(HELLO, b'{"versions":[9]}'))
        await peer.wait(self.pause(2.0))

    async def garbage_frames(self):
        """Frames that mean nothing, or something only elsewhere, on many QUIC streams."""
        peer = await self.standing()
        for number in range(1, 40):
            kind = self.rng.choice([0, 1, 2, 3, 5, 16, 17, 32, 37, 99, 255])
            body = self.rng.randbytes(self.rng.randrange(0, 300))
            peer.send(4 * number, frame(kind, body))
            if self.left() == 0:
                break
        peer.send(0, frame(self.rng.choice([2, 16, 99]), b"x"))
        await peer.wait(self.pause(2.0))

    async def huge_lengths(self):
        """Frames that claim what they never send."""
        peer = await self.standing()
        for number in range(1, 60):
            claim = self.rng.choice([0xFFFFFFFF, 0x7FFFFFFF, 16 << 20, 1 << 20])
            peer.send(4 * number, ATTACH + frame(PUBLISH, b"x" * 100, length=claim))
        peer.send(0, frame(REQUEST, b"", length=0xFFFFFFFF))
        await peer.wait(self.pause(6.0))

    async def half_frames(self):
        """Batches of a megabyte, of which half comes, on as many QUIC streams as there may be."""
        peer = await self.standing()
        half = frame(PUBLISH, b"x" * 30_000, length=1 << 20)
        for number in range(1, 200):
            if self.left() == 0 or peer.gone.is_set():
                return
            peer.send(4 * number, ATTACH + half)
            await asyncio.sleep(0)
        await peer.wait(self.pause(8.0))

    async def gaps(self):
        """Data far ahead of what is missing, which can't be read and has to be kept."""
        peer = await self.standing()
        for number in range(1, 30):
            stream = 4 * number
            peer.quic.send_stream_data(stream, ATTACH + frame(PUBLISH, b"x" * 60_000, length=1 << 20))
            pending = peer.quic._streams[stream].sender._pending
            # Never the first byte; then every other piece, or one byte in a hundred.
            pending.subtract(0, 1)
            step = self.rng.choice([100, 2_000, 60_000])
            for start in range(1, 60_000, 2 * step):
                pending.subtract(start, start + step)
            peer.flush()
            await peer.wait(min(0.05, self.left()))
        await peer.wait(self.pause(8.0))

    async def subscribe(self, window):
        peer = await self.standing(window=window)
        for number in range(1, self.rng.choice([2, 8, 30])):
            follow = {"stream": self.args.stream, "from": {"at": "start"}, "follow": True}
            peer.send(4 * number, request(1, "subscribe", **follow))
        return peer

    async def never_reading(self):
        """Subscribes with large windows and then acknowledges nothing any more."""
        peer = await self.subscribe(window=64 << 20)
        await asyncio.sleep(min(0.1, self.left()))
        peer.deaf = True
        await peer.wait(self.pause(8.0))

    async def small_window(self):
        """Subscribes with a window that never opens again."""
        peer = await self.subscribe(window=4_096)
        peer.quic._write_connection_limits = lambda builder, space: None
        peer.quic._write_stream_limits = lambda builder, space, stream: None
        await peer.wait(self.pause(8.0))

    async def flood(self):
        """Requests without end, their answers ignored."""
        peer = await self.standing(window=32_768 if self.rng.random() < 0.5 else 1 << 20)
        number = 0
        while self.left() > 0 and not peer.gone.is_set() and number < 3_000:
            batch = b"".join(
                self.rng.choice([
                    lambda: request(number, "list_streams", limit=1_000_000),
                    lambda: request(number, "create_stream", name=f"flood-{self.rng.randrange(50)}", if_not_exists=True, settings={}),
                    lambda: request(number, "broker_status"),
                    lambda: request(number, "stream_info", name="x" * 255),
                    lambda: request(number, "what"),
                ])()
                for _ in range(50)
            )
            number += 50
            peer.send(0, batch)
            await asyncio.sleep(0.02)

    async def churn(self):
        """QUIC streams opened and reset at once."""
        peer = await self.standing()
        for number in range(1, 400):
            if self.left() == 0 or peer.gone.is_set():
                return
            stream = 4 * number
            try:
                peer.quic.send_stream_data(stream, ATTACH if number % 2 else b"\x00")
                peer.flush()
                peer.quic.reset_stream(stream, 7)
                peer.quic.stop_stream(stream, 7)
                peer.flush()
            except (AssertionError, RuntimeError, ValueError):
                pass
            if number % 20 == 0:
                await asyncio.sleep(0)

    async def storm(self):
        """Connections, one after the other, closed as soon as they stand."""
        for _ in range(10):
            if self.left() == 0:
                return
            peer = await self.standing()
            peer.quic.close()
            peer.flush()


ATTACKS = [
    "half_open", "first_packets_only", "noise", "wrong_protocol", "silent", "byte_a_second", "garbage_hello",
    "garbage_frames", "huge_lengths", "half_frames", "gaps", "never_reading", "small_window", "flood", "churn", "storm",
]


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("stream", type=int)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=150)
    parser.add_argument("--only", default=",".join(ATTACKS))
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    args = parser.parse_args()
    rng, counts = random.Random(args.seed), {}
    attackers = [Attacker(args, random.Random(rng.randrange(1 << 62)), counts) for _ in range(args.connections)]
    await asyncio.gather(*(attacker.run() for attacker in attackers))
    print(json.dumps({"seed": args.seed, "attacks": counts}))


asyncio.run(main())
