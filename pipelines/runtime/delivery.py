"""Bringing spooled records to MLflow: in order, in batches, each metric of each step once, from a thread of its own.

MLflow's metrics are append-only, and a request whose answer was lost may have been carried out. So nothing is sent
blindly a second time: after a call that failed, and for runs that this process did not create, the server is asked what
it has of (run, metric, step), and only what is missing goes out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dri_iqa import storage
from pipelines.runtime.console import duration
from pipelines.runtime.mlflow_server import Server
from pipelines.runtime.spool import Record, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_TAG = "dri_iqa.key"
MAX_PARAM = 500
"""Characters of a parameter; the full configuration is an artifact."""
METRICS_A_CALL, OTHERS_A_CALL = 1000, 100
"""What the stores take in one `log_batch`: metrics; parameters or tags."""
COLLECT_S = 1.0
"""Records of this long go out together."""
PAUSES_S = (1.0, 2.0, 5.0)
"""Between two attempts while the server is down; the last one repeats."""
TRIES, TRY_S, PATIENCE_S = 8, 0.5, 30.0
"""How often in a row, how far apart and for how long somebody who waits for the delivery lets it fail."""
ARTIFACT_TRIES = 5
"""Times that an artifact is tried while MLflow itself answers."""
_WAITS = (401, 403, 408, 429)
"""Client errors that somebody else may mend: the records wait."""

Say = Callable[[str], None]


class UnknownRunError(LookupError):
    """A record speaks of a run that the server does not have: somebody deleted it."""


class Delivery:
    """The thread that empties a spool.

    Args:
        spool: what to deliver.
        connect: gives the server, or raises while there is none.
        healthy: why the server does not answer, cheaply; None where it does.
        say: tells the person about outages, once each.
        server: already connected, or None.
        embedded: there is no server but a database in this process.
    """

    def __init__(
        self,
        spool: Spool,
        connect: Callable[[], Server],
        healthy: Callable[[], str | None],
        say: Say,
        server: Server | None,
        *,
        embedded: bool,
    ) -> None:
        self._spool, self._connect, self._healthy, self._say = spool, connect, healthy, say
        self.server, self._embedded = server, embedded
        self.since: float | None = None
        """When the server was first found not to answer; None while it does."""
        self.reason = ""
        self._ids: dict[str, str] = {}
        self._fresh: set[str] = set()
        self._has: dict[tuple[str, str], dict[int, float]] = {}
        self._alone = self._stuck = self._reads = 0
        self._failures = 0
        self._asked = self._answered = 0
        self._stop = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)
        self._thread.start()

    def drain(self) -> bool:
        """Try at once, and again while that helps; whether everything has arrived."""
        deadline, tries, got = time.monotonic() + PATIENCE_S, 0, (self._spool.waiting, self._reads)
        while True:
            self._try()
            before, got = got, (self._spool.waiting, self._reads)
            tries = 0 if got != before else tries + 1
            if not got[0] or tries >= TRIES or time.monotonic() > deadline:
                return not got[0]
            time.sleep(TRY_S)

    def close(self) -> bool:
        """Try a last time and end the thread; whether everything has arrived."""
        done = self.drain()
        self._stop = True
        self._try()
        self._thread.join()
        return done

    def _try(self) -> None:
        """Let the thread try, and wait until it has."""
        with self._condition:
            self._asked += 1
            mine = self._asked
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._answered >= mine)

    def run_id(self, key: str) -> str:
        """The id of the run with this key.

        Raises:
            UnknownRunError: there is none.
        """
        if key not in self._ids:
            found = self._find(key)
            if found is None:
                raise UnknownRunError(f"no run with the key {key}")
            self._ids[key] = found.info.run_id
        return self._ids[key]

    def _loop(self) -> None:
        while True:
            with self._condition:
                pause = PAUSES_S[min(self._failures, len(PAUSES_S)) - 1] if self._failures else 0
                self._condition.wait_for(
                    lambda: self._asked > self._answered, timeout=pause or COLLECT_S
                )
                asked, stop = self._asked, self._stop
            if not stop:
                self._empty()
            with self._condition:
                self._answered = asked
                self._condition.notify_all()
            if stop:
                return

    def _empty(self) -> None:
        """Send until nothing is left or something fails; never raises, because nobody would hear."""
        if self.since is not None and (reason := self._silent()):
            self._down(reason)
            return
        while self._spool.waiting:
            batch: list[Record] = []
            try:
                batch = self._spool.peek(METRICS_A_CALL)
                if self._alone:
                    batch, self._alone = batch[:1], self._alone - 1
                self._send(batch)
                self._spool.arrived(batch)
            except Exception as error:
                if self._never(error):
                    self._refused(batch, error)
                    continue
                self._down(f"{type(error).__name__}: {error}")
                # A store of artifacts that is down, or finds one too large, must not hold up everything else.
                if batch and batch[0]["op"] == "artifact" and not self._silent():
                    self._stuck += 1
                    if self._stuck >= ARTIFACT_TRIES:
                        self._refused(batch, error)
                return
            self._stuck = 0
            self._up()

    def _silent(self) -> str | None:
        """Why MLflow does not do what it is asked; the experiment is read, because its address may answer without
        its database.
        """
        if reason := self._healthy():
            return reason
        try:
            if self.server is None:
                self.server = self._connect()
            self.server.client.get_experiment(self.server.experiment)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _down(self, reason: str) -> None:
        self._failures += 1
        self.reason = _line(reason)
        if self.since is None:
            self.since = time.time()
            self._say(f"    {self.outage()}")

    def _up(self) -> None:
        if self.since is not None:
            away = duration(time.time() - self.since)
            self._say(f"    MLflow answers again after {away}: what waited is delivered")
        self.since, self._failures = None, 0

    def outage(self) -> str:
        """What is wrong, and how much waits."""
        clock = datetime.fromtimestamp(self.since or time.time()).strftime("%H:%M:%S")
        count = self._spool.waiting
        records = "1 record waits" if count == 1 else f"{count} records wait"
        what = "MLflow's database takes nothing" if self._embedded else "MLflow does not answer"
        return f"{what} since {clock}, {records} ({self.reason})"

    def _never(self, error: Exception) -> bool:
        """Whether sending a record again would bring the same answer."""
        from mlflow.exceptions import MlflowException, RestException

        if isinstance(error, UnknownRunError | FileNotFoundError):
            return True
        # What is no answer of MLflow's own (a proxy's 404, say) comes as the plain class from a server.
        if not isinstance(error, MlflowException if self._embedded else RestException):
            return False
        status = error.get_http_status_code()
        return 400 <= status < 500 and status not in _WAITS

    def _refused(self, batch: list[Record], error: Exception) -> None:
        if len(batch) > 1:  # the culprit is one of them
            self._alone = len(batch)
            return
        reason = _line(f"{type(error).__name__}: {error}")
        self._stuck = 0
        place = self._spool.set_aside(batch[0], reason)
        what = f"{batch[0]['op']} of {batch[0]['key']}"
        self._say(f"    MLflow did not take a record ({what}): {reason}")
        self._say(f"    it is kept in {place}, and the same command tries it again")

    def _send(self, batch: list[Record]) -> None:
        if self.server is None:
            self.server = self._connect()
        if batch[0]["op"] == "metrics":
            self._metrics(batch)
        else:
            send = {
                "run": self._run,
                "tags": self._tags,
                "artifact": self._artifact,
                "end": self._end,
                "close": self._close,
            }
            send[batch[0]["op"]](batch[0])

    def _metrics(self, batch: list[Record]) -> None:
        from mlflow.entities import Metric

        rows: dict[str, list[Metric]] = {}
        sent: dict[tuple[str, str], dict[int, float]] = {}
        for record in batch:
            run, step, again = self.run_id(record["key"]), record["step"], record["again"]
            for name, value in record["values"].items():
                has, steps = self._known(run, name), sent.setdefault((run, name), {})
                known = steps.get(step, has.get(step))
                if known is not None and (not again or known == value):
                    continue
                steps[step] = value
                rows.setdefault(run, []).append(Metric(name, value, record["time"], step))
        try:
            for run, metrics in rows.items():
                for start in range(0, len(metrics), METRICS_A_CALL):
                    self._client.log_batch(run, metrics=metrics[start : start + METRICS_A_CALL])
        except Exception:
            # Nobody knows which of these the server has now; all else that was read stays true.
            for names in sent:
                del self._has[names]
            self._fresh -= rows.keys()
            raise
        for names, steps in sent.items():
            self._has[names].update(steps)

    def _known(self, run: str, name: str) -> dict[int, float]:
        """Steps of a metric that the server has, and their values."""
        if (run, name) not in self._has:
            rows = [] if run in self._fresh else self._client.get_metric_history(run, name)
            self._reads += 1
            self._has[run, name] = {row.step: row.value for row in rows}
        return self._has[run, name]

    def _run(self, record: Record) -> None:
        """Find the run again, or create it; parameters that are there already stay."""
        from mlflow.entities import Param

        key = record["key"]
        run = self._find(key)
        if run is None:
            tags = {KEY_TAG: key, "mlflow.runName": record["name"]}
            if record["parent"]:
                tags["mlflow.parentRunId"] = self.run_id(record["parent"])
            run = self._client.create_run(
                self._experiment, start_time=record["time"], tags=tags, run_name=record["name"]
            )
            self._fresh.add(run.info.run_id)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._ids[key] = run.info.run_id
        params = [
            Param(name, value[:MAX_PARAM])
            for name, value in record["params"].items()
            if name not in run.data.params
        ]
        for start in range(0, len(params), OTHERS_A_CALL):
            self._client.log_batch(run.info.run_id, params=params[start : start + OTHERS_A_CALL])

    def _tags(self, record: Record) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, value) for name, value in record["values"].items()]
        for start in range(0, len(tags), OTHERS_A_CALL):
            self._client.log_batch(
                self.run_id(record["key"]), tags=tags[start : start + OTHERS_A_CALL]
            )

    def _artifact(self, record: Record) -> None:
        run, path = self.run_id(record["key"]), self._spool.path(record)
        if path.is_dir():
            self._client.log_artifacts(run, str(path), record["folder"])
        else:
            self._client.log_artifact(run, str(path), record["folder"])

    def _end(self, record: Record) -> None:
        self._client.set_terminated(self.run_id(record["key"]), record["status"], record["time"])

    def _close(self, record: Record) -> None:
        """End what is open at and below a key, also what a process that was killed has left open."""
        key = record["key"]
        running = self._client.search_runs(
            [self._experiment],
            filter_string=f"attributes.status = 'RUNNING' and tags.`{KEY_TAG}` LIKE '{key}%'",
            max_results=1000,
        )
        for run in running:
            theirs = run.data.tags[KEY_TAG]
            if theirs == key or theirs.startswith(key + "/"):
                self._client.set_terminated(run.info.run_id, record["status"], record["time"])

    def _find(self, key: str) -> Any:
        found = self._client.search_runs(
            [self._experiment], filter_string=f"tags.`{KEY_TAG}` = '{key}'", max_results=1
        )
        return found[0] if found else None

    @property
    def _client(self) -> MlflowClient:
        assert self.server is not None
        return self.server.client

    @property
    def _experiment(self) -> str:
        assert self.server is not None
        return self.server.experiment


def _line(reason: str) -> str:
    if (
        "(sqlite3." in reason
    ):  # before it, and after it in lines of its own, stands what SQLAlchemy has to say
        reason = reason[reason.index("(sqlite3.") :].partition("\n")[0]
    return storage.redact(" ".join(reason.split()))[:200]
