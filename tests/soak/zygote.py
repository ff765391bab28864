"""Forks workers that are ready in milliseconds: all imports and the model are loaded once, before the fork.

Run as a program by `workers.Zygote`. Commands come as JSON lines on stdin, answers and the ends of children
go out as JSON lines on stdout. It has one thread and starts none, so forking it is safe; every child is a
process of its own with its own connections, and dies with this one.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from stream import app
from stream.config import load_settings
from stream.engine import flush, pipeline
from stream.errors import RiskstreamError
from stream.events.decoder import Decoder
from stream.kafka.kafka_python.client import KafkaPythonClient
from stream.logs import configure_logs
from stream.state.redis import RedisStore
from tests.soak import judging, plants

_LOADED = (KafkaPythonClient, RedisStore)
"""What the application imports late is imported here, before the fork."""
_DIE_WITH_PARENT = 1


class FaultPoint:
    """Strikes at the n-th passing of a point, once a file tells which: {"point", "hit", "act", "delay_ms"}.

    "kill": SIGKILL, so many ms later (0: exactly there). "stop": SIGSTOP, until somebody sends SIGCONT. "wait":
    stand still for so long. The file is renamed to FILE.reached before.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._passed: Counter[str] = Counter()

    def __call__(self, point: str) -> None:
        try:
            order = json.loads(self._file.read_text())
        except FileNotFoundError:
            self._passed.clear()
            return
        self._passed[point] += 1
        if point != order["point"] or self._passed[point] != order["hit"]:
            return
        self._file.rename(f"{self._file}.reached")
        delay_s = order["delay_ms"] / 1000
        if order["act"] == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif order["act"] == "wait":
            time.sleep(delay_s)
        elif delay_s:
            threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
        else:
            os.kill(os.getpid(), signal.SIGKILL)


def run_worker(order: dict[str, Any]) -> int:
    """`riskstream run` with these settings; its exit code."""
    settings = load_settings(None, {}, order["settings"]).settings
    configure_logs(settings.log, worker=settings.kafka.worker_id)
    flush._WRITE_ROWS = order["write_rows"]
    for name in order["plants"]:
        plants.PLANTS[name]()
    app.build_worker = functools.partial(app.build_worker, fault=FaultPoint(Path(order["fault"])))
    try:
        return app.run_worker(settings)
    except RiskstreamError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def run_judge(order: dict[str, Any]) -> int:
    """Judges one partition; the verdict goes to a file."""
    judging.judge(order)
    return 0


_PROGRAMS: dict[str, Callable[[dict[str, Any]], int]] = {"worker": run_worker, "judge": run_judge}


def in_child(order: dict[str, Any]) -> NoReturn:
    """Becomes the child's program; never returns."""
    code = 70
    try:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source, target)
        os.setsid()
        code = _PROGRAMS[order["program"]](order)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def say(**message: object) -> None:
    print(json.dumps(message), flush=True)


def reap() -> None:
    """Tells which children have ended, and how."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        say(ended=pid, code=os.waitstatus_to_exitcode(status))


def preload(bundle: str | None) -> None:
    """Loads the model and compiles the schemas, so that a child need not."""
    settings = load_settings(None, {}, {}).settings
    domain = app.load_domain(settings)
    if bundle:
        scorer = app.load_scorer(Path(bundle), domain, settings.scoring)
        app.load_scorer = lambda *_, **__: scorer
    known = functools.cache(Decoder)
    pipeline.Decoder = known
    for schema in (domain.event, domain.label):
        known(schema, settings.batch, time_field=domain.time_field)


def main() -> None:
    preload(sys.argv[1] if len(sys.argv) > 1 else None)
    gc.freeze()
    wake, alarm = os.pipe()
    os.set_blocking(alarm, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
    say(ready=True)
    pending = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
        reap()
        if 0 in ready:
            data = os.read(0, 65_536)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    in_child(order)
                say(started=pid, ticket=order["ticket"])


if __name__ == "__main__":
    main()
