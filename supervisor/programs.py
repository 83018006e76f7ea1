"""The kernel programs that steer QUIC packets to the socket of a worker: classic BPF, which needs no privilege.

``qmux.steering.choose`` is the model of what ``build`` makes; a test holds the two against each other with packets.
The kernel hands the program the UDP payload at offset 0 and takes the returned number as the index into the group, in
the order of the sockets' bind calls. A load beyond the packet would return 0, hence the length check comes first.
A program is replaced atomically (Linux net/core/sock_reuseport.c, reuseport_attach_prog) and never detached: between
two programs the kernel's own hash would steer.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from qmux.steering import INITIAL_FORM, MAX_SLOT, MIN_STEERED_BYTES

MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS (linux/bpf_common.h): room for some 800 workers."""

_SO_ATTACH_REUSEPORT_CBPF = 51  # asm-generic/socket.h

# linux/bpf_common.h: class | size or operation | mode or source
_LOAD_LENGTH = 0x00 | 0x00 | 0x80
_LOAD_BYTE = 0x00 | 0x10 | 0x20
_LOAD_HALF = 0x00 | 0x08 | 0x20
_MODULO = 0x04 | 0x90
_AND = 0x04 | 0x50
_JUMP = 0x05 | 0x00
_IF_EQUAL = 0x05 | 0x10
_IF_AT_LEAST = 0x05 | 0x30
_IF_BITS = 0x05 | 0x40
_RETURN = 0x06 | 0x00

_LONG_HEADER = 0x80


class Instruction(NamedTuple):
    """``struct sock_filter``: jumps are relative to the next instruction."""

    code: int
    if_true: int
    if_false: int
    value: int


def build(position: Mapping[int, int], live: Collection[int], active: Sequence[int]) -> list[Instruction]:
    """The program for a group in which slot S has the socket number ``position[S]``.

    ``live`` and ``active`` are those of ``qmux.steering.choose``; ``active`` must not be empty.
    """
    initial = [step for slot in active for step in _when(slot, position[slot])]
    issued = [step for slot in sorted(live) for step in _when(slot, position[slot])]
    fallback = [
        Instruction(_MODULO, 0, 0, len(active)),
        *(step for rank, slot in enumerate(active) for step in _when(rank, position[slot])),
        _return(position[active[0]]),  # not reached: a remainder is one of the ranks
    ]
    program = [
        Instruction(_LOAD_LENGTH, 0, 0, 0),
        Instruction(_IF_AT_LEAST, 1, 0, MIN_STEERED_BYTES),
        _return(position[active[0]]),
        Instruction(_LOAD_BYTE, 0, 0, 0),
        Instruction(_IF_BITS, 0, 2, _LONG_HEADER),
        Instruction(_LOAD_HALF, 0, 0, 6),
        Instruction(_JUMP, 0, 0, 1),
        Instruction(_LOAD_HALF, 0, 0, 1),
        Instruction(_IF_BITS, 1, 0, INITIAL_FORM),
        Instruction(_JUMP, 0, 0, len(initial) + 2),  # to the issued part
        Instruction(_AND, 0, 0, MAX_SLOT),
        *initial,
        Instruction(_JUMP, 0, 0, len(issued)),  # to the fallback
        *issued,
        *fallback,
    ]
    if len(program) > MAX_INSTRUCTIONS:
        raise ValueError(
            f"{len(live)} workers need {len(program)} instructions; at most {MAX_INSTRUCTIONS} are possible"
        )
    return program


def attach(sock: socket.socket, program: Sequence[Instruction]) -> None:
    """Make ``program`` steer the whole group of ``sock``, from this instant on."""
    filters = (_Filter * len(program))(*(_Filter(*instruction) for instruction in program))
    header = _Program(len(program), ctypes.cast(filters, ctypes.c_void_p))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, bytes(header))


def _when(value: int, index: int) -> tuple[Instruction, Instruction]:
    return Instruction(_IF_EQUAL, 0, 1, value), _return(index)


def _return(index: int) -> Instruction:
    return Instruction(_RETURN, 0, 0, index)


class _Filter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filters", ctypes.c_void_p))
