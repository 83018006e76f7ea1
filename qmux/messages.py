"""What the supervisor and its children say to each other on a control channel (``qmux.channel`` carries it).

Down: Configure, AddBind, RemoveBind, Accept, StopAccepting, Drain, Stop, Peers, LogTo, Relisten, Table, Reply.
Up: Ready, Configured, Heartbeat, Failed, Done, Request. A child that gets no more (EOF) closes and exits within 2 s.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from qmux.config.schema import Protocol, Purpose
from qmux.pki.material import Keys, Material, Role


class Message(msgspec.Struct, tag=str.lower, tag_field="type"):
    """Base: encoded as a map whose ``type`` is the class name in lower case."""


class Timings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times of a worker, in seconds, that tests shorten (``TIMINGS_VARIABLE``); a daemon in service has the defaults.

    ``duplicate_look_s``: how often a client probes a second way to a server that it has; it may have become another
    server's. ``stable_s``: a connection to a server that lived for this long was a success.
    """

    duplicate_look_s: float = 30.0
    stable_s: float = 3.0


TIMINGS_VARIABLE = "QMUX_TEST_TIMINGS"
"""Environment variable of the supervisor: a JSON object with fields of ``Timings``."""


class Configure(Message):
    """Everything that a child needs to know; sent first, and again for every reload. Answered by Configured.

    ``config`` is the msgpack of a ServerConfig or ClientConfig, by ``role``. ``slot`` and ``index`` are those of
    docs/architecture.md; ``epoch`` counts the processes started in this slot.
    """

    version: int
    role: Role
    config: bytes
    material: Material
    keys: Keys
    server_id: bytes
    generation: int
    index: int
    slot: int
    epoch: int
    workers: int
    runtime_dir: str
    bus_publish: str
    bus_subscribe: str
    timings: Timings = Timings()


class AddBind(Message):
    """A socket of this worker's index (traffic) or slot (quic); carries exactly one descriptor. Not yet read from."""

    key: str
    purpose: Purpose
    protocol: Protocol
    address: str
    service: str = ""


class RemoveBind(Message):
    """Accept until the queue is empty, ``shutdown()``, close. For a service's traffic only. Without ``shutdown`` the
    bind only passes to another worker: close this copy and leave the queue to it.
    """

    key: str
    shutdown: bool = True


class Accept(Message):
    """Start reading every bind."""


class StopAccepting(Message):
    """Stop accepting users: empty the queues, then close the traffic binds."""


class Drain(Message):
    """Tell the clients; finish what runs; exit at ``deadline_s`` from now at the latest, or when nothing runs."""

    deadline_s: float
    replace: bool = False


class Stop(Message):
    """Close everything and exit now."""


class PeerSlot(msgspec.Struct, frozen=True):
    """A live worker. ``active``: takes new connections."""

    slot: int
    index: int
    epoch: int
    pid: int
    active: bool


class Peers(Message):
    """All live workers (the receiver among them). ``links`` names, in order, the slots whose hand-off sockets the
    message carries: one new descriptor for each; a slot that is not named keeps the one it has. ``died``: slots whose
    process ended since the last Peers.
    """

    slots: list[PeerSlot]
    links: list[int] = []
    died: list[int] = []


class ProcessRow(msgspec.Struct):
    """One process for ``qmux status``."""

    name: str
    pid: int
    state: str
    index: int = -1
    slot: int = -1
    epoch: int = 0
    restarts: int = 0
    started_at: float = 0.0  # wall clock, seconds since the epoch
    silent_s: float = 0.0  # since its last heartbeat
    rss_bytes: int = 0
    cpu_s: float = 0.0


class DaemonIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Which daemon this is; also the contents of ``daemon.json``. ``source``: its configuration, as the user named it.

    ``started_at`` is wall clock, in seconds since the epoch.
    """

    role: Role
    pid: int
    source: str
    version: str
    started_at: float
    admin_socket: str


class ReloadFacts(msgspec.Struct, frozen=True):
    """What the last reload came to, as ``qmux reload`` showed it."""

    ok: bool
    lines: list[str]
    exit_code: int


class GenerationFacts(msgspec.Struct, frozen=True):
    """Workers that were started together from one configuration, at ``since`` (wall clock)."""

    number: int
    since: float


DaemonState = Literal["starting", "ready", "stopping"]


class DaemonSummary(DaemonIdentity, frozen=True, kw_only=True):
    """What ``qmux status`` says of the daemon itself. ``binds``: what listens, by ``quic`` and ``traffic:SERVICE``.

    ``engine`` is "" until a worker is ready; ``config_version`` counts the configurations sent.
    """

    state: DaemonState
    generation: int
    workers: int
    engine: str = ""
    server_id: str = ""
    config_version: int = 1
    binds: dict[str, list[str]] = {}
    last_reload: ReloadFacts | None = None


class DaemonFacts(DaemonSummary, frozen=True, kw_only=True):
    """What the supervisor says of its daemon. ``generations`` has the newest last."""

    generations: list[GenerationFacts] = []


class Table(Message):
    """The process table and the daemon's own facts, for the admin process; on change and once a second."""

    processes: list[ProcessRow]
    facts: DaemonFacts


class LogTo(Message):
    """The log file was reopened: write to the one descriptor that comes with this from now on."""


class Relisten(Message):
    """To the admin process: somebody removed the runtime directory, and it was put back. Make the socket in it anew."""


class Reply(Message):
    """The answer to a Request: ``ok``, the lines for the user, and the exit code."""

    request_id: int
    ok: bool
    lines: list[str]
    exit_code: int = 0


class ReadyFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a child found out at its start, for logs and status: a worker its engine, the admin process its socket."""

    engine: str = ""
    admin_socket: str = ""


class Ready(Message):
    """The child serves: engine started, binds at hand."""

    facts: ReadyFacts = ReadyFacts()


class Configured(Message):
    """A Configure was applied (``error`` empty) or refused as a whole."""

    version: int
    error: str = ""


class Heartbeat(Message):
    """From the child's own event loop, once a second: its absence means that the loop is stuck."""

    active: int = 0


class Failed(Message):
    """The child cannot go on; the supervisor prints ``message`` and, where ``fatal``, exits with ``exit_code``."""

    message: str
    exit_code: int
    fatal: bool = False


class Done(Message):
    """A draining child finished, or (``qmuxc --once``) the single attempt was made."""

    exit_code: int = 0


class Request(Message):
    """The admin process asks for something on a user's behalf. ``action``: "reload"."""

    request_id: int
    action: Literal["reload"]
    dry_run: bool = False
    full: bool = False


Down = (
    Configure | AddBind | RemoveBind | Accept | StopAccepting | Drain | Stop | Peers | LogTo | Relisten | Table | Reply
)
Up = Ready | Configured | Heartbeat | Failed | Done | Request
