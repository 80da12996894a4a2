"""A private PostgreSQL server on a free port of loopback, for as long as it is wanted: initdb and pg_ctl, no root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

from lab.nodes import free_port

USERS = ("postgres", "nobody")  # PostgreSQL does not run as root


class NoPostgres(Exception):
    """The message says what to install."""


class Postgres:
    """What is committed is on disk, as in any other."""

    def __init__(self) -> None:
        self._bin = _programs()
        self._user = _user()
        # not below a folder of the caller's, which that user could not enter
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        if self._user:
            shutil.chown(self._folder, self._user)
        self._data = self._folder / "data"
        self._run("initdb", "--auth=trust", "--username=shop", "--encoding=UTF8", "--no-sync", "-D", str(self._data))
        self.port = free_port()
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories=''"
        self._run("pg_ctl", "start", "--wait", "-D", str(self._data), "-l", str(self._folder / "log"), "-o", options)

    def database(self) -> str:
        """A new, empty one, as DATABASE_URL wants it."""
        name = f"shop_{uuid.uuid4().hex[:8]}"
        self._run("createdb", "--host=127.0.0.1", f"--port={self.port}", "--username=shop", name)
        return f"postgresql://shop@127.0.0.1:{self.port}/{name}"

    def remove(self) -> None:
        self._run("pg_ctl", "stop", "--mode=immediate", "-D", str(self._data))
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        with tempfile.TemporaryFile("w+") as said:  # no pipe: the server would hold it open
            command = [str(self._bin / program), *arguments]
            files = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said}
            result = subprocess.run(
                command, env=environment, cwd=self._folder, user=self._user, start_new_session=True, **files
            )  # type: ignore[call-overload]
            said.seek(0)
            if result.returncode:
                raise NoPostgres(f"{program} failed: {said.read()[-500:]}")


def _programs() -> Path:
    """Where initdb and pg_ctl are: Debian does not put them on the path."""
    found = [Path(path).resolve().parent for name in ("initdb",) if (path := shutil.which(name))]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    for folder in found:
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    raise NoPostgres("no PostgreSQL is installed: apt-get install postgresql")


def _user() -> str | None:
    """Who runs it: we, or an ordinary user where we are root."""
    if os.getuid():
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(user for user in USERS if user in known)
