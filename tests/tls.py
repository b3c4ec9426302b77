"""Debian's redis-server with TLS, and a private CA for it; the wheel's Valkey is built without TLS."""

from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import trustme
from redis import Redis

from tests.cluster import free_ports

BINARY = shutil.which("redis-server")
needs_redis_server = pytest.mark.skipif(
    BINARY is None or b"libssl" not in subprocess.run(["ldd", BINARY], capture_output=True, check=False).stdout,
    reason="needs a redis-server that is built with TLS, as Debian's package is: apt-get install redis-server",
)


class Authority:
    """A private CA, whose certificate is the file `ca`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder, self._name = folder, name
        self._authority = trustme.CA()
        self.ca = folder / f"{name}.pem"
        self._authority.cert_pem.write_to_path(self.ca)

    def issue(self, *names: str) -> tuple[Path, Path]:
        """The files of a certificate for these hosts, and of its key."""
        made = self._authority.issue_cert(*names)
        certificate = self._folder / f"{self._name}-{names[0]}.crt"
        key = certificate.with_suffix(".key")
        made.private_key_pem.write_to_path(key)
        certificate.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        return certificate, key


class TlsRedis:
    """A redis-server, or a Sentinel, that talks TLS alone."""

    def __init__(
        self, folder: Path, authority: Authority, *names: str, clients: str = "no", arguments: Sequence[str] = ()
    ) -> None:
        (self.port,) = free_ports(1)
        self.authority = authority
        self._names = names
        self._own = folder / str(self.port)
        self._own.mkdir()
        certificate, key = authority.issue(*names)
        self._arguments = [
            *(
                "--port",
                "0",
                "--tls-port",
                str(self.port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
                str(self._own),
            ),
            *("--tls-cert-file", str(certificate), "--tls-key-file", str(key)),
            *("--tls-ca-cert-file", str(authority.ca), "--tls-auth-clients", clients, "--tls-replication", "yes"),
            *arguments,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, configuration: str | None = None) -> None:
        """Start it and wait until it answers; `configuration` makes it a Sentinel."""
        assert BINARY is not None
        command = [BINARY]
        if configuration is not None:
            file = self._own / "sentinel.conf"
            file.write_text(configuration)
            command += [str(file), "--sentinel"]
        self._process = subprocess.Popen(
            [*command, *self._arguments], stdout=subprocess.DEVNULL, start_new_session=True
        )
        end = time.monotonic() + 15
        while not self._listens():
            assert self._process.poll() is None, f"redis-server exited with {self._process.returncode}"
            assert time.monotonic() < end, "redis-server does not answer"
            time.sleep(0.01)

    def _listens(self) -> bool:
        try:
            ssl.get_server_certificate(("127.0.0.1", self.port), timeout=2)
        except OSError as error:
            return "CERTIFICATE_REQUIRED" in str(error)
        return True

    def admin(self) -> Redis:
        """A client that trusts it and shows a certificate of its own."""
        certificate, key = self.authority.issue("admin")
        return Redis(
            *("127.0.0.1", self.port), ssl=True, ssl_ca_certs=str(self.authority.ca), protocol=2,
            ssl_check_hostname=False, ssl_certfile=str(certificate), ssl_keyfile=str(key),
        )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
