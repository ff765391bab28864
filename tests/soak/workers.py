"""Worker processes that a zygote forks: started in milliseconds, killed, stopped and watched from here."""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.broker.harness import PATIENCE_S, WorkerView, until

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


class Zygote:
    """The process that forks. `close` ends it, and with it everything that it has forked."""

    def __init__(self, bundle: Path | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.zygote", *([str(bundle)] if bundle else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | _ENVIRONMENT, text=True, bufsize=1,
        )  # fmt: skip
        self._tickets = itertools.count()
        self._started: dict[int, queue.Queue[Child]] = {}
        self._children: dict[int, Child] = {}
        self._lock = threading.Lock()
        self._ready = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def fork(self, program: str, **order: Any) -> Child:
        """Starts a child. Blocks until it has a pid."""
        assert self._ready.wait(PATIENCE_S), "the zygote does not start"
        ticket, answer = next(self._tickets), queue.Queue[Child]()
        with self._lock:
            self._started[ticket] = answer
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"program": program, "ticket": ticket, **order}) + "\n")
        return answer.get(timeout=PATIENCE_S)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "ready" in message:
                self._ready.set()
            elif "started" in message:
                child = self._children[message["started"]] = Child(message["started"])
                self._started.pop(message["ticket"]).put(child)
            else:
                self._children.pop(message["ended"]).end(message["code"])


class Child:
    """A forked process and how it ended: negative the signal, as for subprocess."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None
        self._ended = threading.Event()

    def end(self, code: int) -> None:
        self.code = code
        self._ended.set()

    def wait(self, timeout_s: float) -> int | None:
        """The exit code; None if it still runs after the timeout."""
        self._ended.wait(timeout_s)
        return self.code

    def send(self, number: signal.Signals) -> None:
        """Nothing happens if it has ended."""
        if self.code is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return


class ForkedWorker(WorkerView):
    """`riskstream run`, forked. Has its log, its HTTP address, and a place where a fault may be ordered."""

    def __init__(
        self,
        zygote: Zygote,
        folder: Path,
        settings: Mapping[str, object],
        *,
        plants: Sequence[str] = (),
        write_rows: int = 8,
    ) -> None:
        self.worker_id = str(settings["kafka.worker_id"])
        self.log_path = folder / "worker.log"
        self._zygote, self._settings, self._plants, self._write_rows = zygote, dict(settings), plants, write_rows
        self._fault = folder / "fault"
        self.child: Child | None = None
        folder.mkdir(parents=True)

    def launch(self) -> None:
        """Forks it; it joins its group by itself."""
        self.child = self._zygote.fork(
            "worker", settings=self._settings, log=str(self.log_path), fault=str(self._fault),
            plants=list(self._plants), write_rows=self._write_rows,
        )  # fmt: skip

    def wait_ready(self, timeout_s: float = PATIENCE_S) -> None:
        until(lambda: bool(self.logs("started")) or self.exit_code is not None, "the worker starts", timeout_s)
        assert self.exit_code is None, self.output()

    @property
    def exit_code(self) -> int | None:
        return self.child.code if self.child is not None else None

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.code is None

    def output(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def send(self, number: signal.Signals) -> None:
        assert self.child is not None
        self.child.send(number)

    def kill(self) -> None:
        """SIGKILL; nothing happens if it is gone."""
        if self.child is not None:
            self.child.send(signal.SIGKILL)
            self.child.wait(PATIENCE_S)

    def wait_exit(self, timeout_s: float = PATIENCE_S) -> int:
        assert self.child is not None
        code = self.child.wait(timeout_s)
        assert code is not None, f"{self.worker_id} has not ended within {timeout_s:.0f} s: {self.output()[-2000:]}"
        return code

    # --- faults

    def order(self, point: str, *, act: str = "kill", hit: int = 1, delay_ms: float = 0.0) -> None:
        """At the hit-th passing of the point, counted from now, it is killed, stopped, or waits."""
        content = {"point": point, "act": act, "hit": hit, "delay_ms": delay_ms}
        self._reached.unlink(missing_ok=True)
        part = self._fault.with_suffix(".part")
        part.write_text(json.dumps(content))
        part.rename(self._fault)

    def cancel(self) -> bool:
        """Takes the order back; False if it has been carried out."""
        try:
            self._fault.unlink()
        except FileNotFoundError:
            return False
        return True

    def reached(self) -> bool:
        """Whether the ordered point has been reached."""
        return self._reached.exists()

    def wait_reached(self, timeout_s: float, also: Callable[[], bool] = lambda: False) -> bool:
        """Waits for the point, for the worker's end, or for `also`; whether the point was reached."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.alive and not self.reached() and not also():
            time.sleep(0.01)
        return self.reached()

    @property
    def _reached(self) -> Path:
        return self._fault.with_name("fault.reached")
