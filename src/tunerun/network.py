"""Addresses and ports."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """Returns a port of the loopback address on which nobody listens; another program may take it before it is used."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def is_loopback(host: str) -> bool:
    """Says whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Address:
    """Where an endpoint is."""

    host: str
    encrypted: bool

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine."""
        return is_loopback(self.host)


def address(url: str) -> Address:
    """Reads an endpoint's address.

    Raises:
        ValueError: It is none; says why in one sentence, which never repeats the address.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
        # Read for its own check.
        _ = parts.port
    except ValueError as error:
        # What the library says would repeat a part of it.
        raise ValueError("is no address: its host or its port cannot be read.") from error
    if "@" in parts.netloc:
        raise ValueError("holds a user name or a password.")
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("is no address of a web server.")
    if parts.query or parts.fragment:
        raise ValueError("has something after ? or #.")
    return Address(host=host, encrypted=parts.scheme == "https")
