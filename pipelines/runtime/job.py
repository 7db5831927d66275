"""One job: its identity, its folder, its finished steps, its voice, and how it fails.

A job's name is derived from its configuration, so the same command finds what it has done before: finished steps
are read back, a finished job says so. Errors that a person can mend are two lines and exit code 2.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dri_iqa import storage
from dri_iqa.config import ConfigError, to_dict
from pipelines.runtime import config as configuration
from pipelines.runtime.buckets import check_bucket
from pipelines.runtime.config import JobConfig
from pipelines.runtime.console import Console, duration

if TYPE_CHECKING:
    from pipelines.runtime.tracking import Tracker

Result = dict[str, Any]
VERSIONED = (
    "ray",
    "torch",
    "torchvision",
    "timm",
    "mlflow",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "optuna",
)


class Job:
    """A configured job in its folder. `connect()` gives it a cluster, tracking and a journal."""

    def __init__(self, config: JobConfig) -> None:
        from pipelines.runtime.mlflow_server import without_credentials

        self.console = Console()
        self.output = resolve_output(config.output)
        tracking = without_credentials(config.tracking)
        self.config = replace(config, output=self.output, tracking=tracking)
        self.identity = configuration.digest(_identity(config))
        self.name = config.run or f"{config.job}-{config.data.name}-{self.identity[:8]}"
        self.directory = storage.join(self.output, "jobs", self.name)
        check_bucket(self.output)
        storage.check_writable(self.directory)

    @contextlib.contextmanager
    def connect(self) -> Iterator[None]:
        """Tracking, Ray, the plan and the journal, for the duration of the block."""
        from pipelines.runtime.cluster import quiet_libraries
        from pipelines.runtime.journal import Journal
        from pipelines.runtime.mlflow_server import check_server

        quiet_libraries(self.config.verbose)
        check_server(self.config.tracking, self.directory)
        with contextlib.ExitStack() as stack:
            # A new registry and a new cluster take seconds each, and mostly wait.
            beside = stack.enter_context(ThreadPoolExecutor(1))
            opened = beside.submit(self._open_tracker)
            stack.enter_context(self.attach())
            stack.enter_context(_terminable())
            self.tracker = opened.result()
            stack.callback(self._close_tracker)
            self.console.say(f"cluster   {self.plan}")
            self.console.say(f"tracking  {self.tracker.uri}")
            self.journal = Journal(f"journal-{self.name}")
            self.tracker.run(self.name, self.name, params=_identity(self.config))
            self.tracker.text(self.name, configuration.to_yaml(self.config), "config.yaml")
            self.tracker.json(self.name, versions(), "versions.json")
            self.tracker.tags(
                self.name,
                {"mlflow.source.git.commit": git_commit(), "dri_iqa.scores": self.config.data.name},
            )
            try:
                with self.tracker.closing(self.name):
                    yield
            finally:
                self.journal.close()

    @contextlib.contextmanager
    def attach(self, *, table: bool = False) -> Iterator[None]:
        """Ray and the plan, once the preflight has found nothing amiss; `table` shows all that it found."""
        from pipelines.runtime.cluster import connect, quiet_libraries
        from pipelines.runtime.preflight import preflight

        quiet_libraries(self.config.verbose)
        with connect(self.config.cluster, verbose=self.config.verbose) as totals:
            self.plan = preflight(self.config, self.directory, totals, self.console, table=table)
            yield

    def catch_up(self) -> None:
        """Deliver what an earlier process of this job, which is finished, could not bring to MLflow."""
        from pipelines.runtime.tracking import undelivered

        if undelivered(self.config.tracking, self.directory):
            self.tracker = self._open_tracker()
            self._close_tracker()

    def _open_tracker(self) -> Tracker:
        from pipelines.runtime.mlflow_server import spool_folder
        from pipelines.runtime.tracking import Tracker

        folder = spool_folder(self.config.tracking, self.directory)
        return Tracker(self.config.tracking, self.output, folder, self.console.say)

    def _close_tracker(self) -> None:
        if left := self.tracker.close():
            self.console.say(f"tracking  {left}")

    def step(
        self, name: str, title: str, work: Callable[[], Result], identity: Any = None
    ) -> Result:
        """Do a step once: its result is stored, and read back when the same command runs again.

        Args:
            name: file name of the record.
            title: what the person reads.
            work: returns plain data.
            identity: plain data the result depends on besides the job's configuration.
        """
        self.console.headline(title)
        uri = storage.join(self.directory, "steps", f"{name}.json")
        key = configuration.digest([self.identity, identity])
        if storage.exists(uri):
            record = storage.read_json(uri)
            if record["identity"] == key:
                self.console.say(f"    done before ({record['finished']}), taken as it is")
                return record["result"]
        started = time.monotonic()
        result = work()
        seconds = time.monotonic() - started
        finished = datetime.now().astimezone().isoformat(timespec="seconds")
        storage.write_json(
            uri,
            {"identity": key, "result": result, "seconds": round(seconds, 1), "finished": finished},
        )
        self.console.say(f"    done in {duration(seconds)}")
        return result

    def seconds(self) -> dict[str, float]:
        """Duration of every step done so far, in the run that did it."""
        steps = storage.list_files(storage.join(self.directory, "steps"), suffix=".json")
        return {Path(uri).stem: storage.read_json(uri)["seconds"] for uri in steps}

    @property
    def summary_uri(self) -> str:
        """Where a finished job keeps what it printed last."""
        return storage.join(self.directory, "finished.json")


def main(job: str, steps: Callable[[Job], None], argv: list[str] | None = None) -> None:
    """Parse the command line, run the job, and end the process with its exit code."""
    sys.exit(run(job, steps, sys.argv[1:] if argv is None else argv))


def run(job: str, steps: Callable[[Job], None], argv: list[str]) -> int:
    """Run a job; returns 0, 2 for what the user can mend, 130 when interrupted, 1 for anything else."""
    if any(word in ("-h", "--help") for word in argv):
        print(usage(job))
        return 0
    try:
        work = Job(configuration.compose(job, argv))
        if work.config.dry_run and job != "evaluate":
            raise ConfigError(f"dry_run=true belongs to `evaluate`, this is `{job}`\nleave it out")
        if work.config.registry.rollback and job != "register":
            raise ConfigError(
                f"registry.rollback=true belongs to `register`, this is `{job}`\nleave it out"
            )
        steps(work)
        if storage.retries():
            work.console.say(f"{storage.retries()} requests to storage were repeated")
    except KeyboardInterrupt:
        _complain("interrupted", "start the same command again to go on from the last checkpoint")
        return 130
    except Exception as error:
        known = mendable(error)
        if known is None:
            traceback.print_exc()
            _complain(
                f"{type(error).__name__} (traceback above)",
                "start the same command again to resume; verbose=true shows Ray's own logs",
            )
            return 1
        head, _, rest = str(known).strip().partition("\n")
        _complain(head, rest.strip() or f"see `python pipelines/{job}.py --help`")
        return 2
    return 0


def usage(job: str) -> str:
    """What `--help` prints."""
    lines = [f"python pipelines/{job}.py [group=option] [dotted.key=value]", "", "groups:"]
    lines += [
        f"  {name:10} {' | '.join(options)}" for name, options in configuration.groups().items()
    ]
    lines += ["", "keys (defaults are those of preset=paper):"]
    values = to_dict(JobConfig())
    for key in configuration.valid_keys():
        node: Any = values
        for part in key.split("."):
            node = node[part]
        if not isinstance(node, dict):
            lines.append(f"  {key} = {node}")
    return "\n".join(lines)


def resolve_output(output: str) -> str:
    """The output folder as an absolute path or URI.

    `ray job submit --working-dir` runs in a temporary copy of the project that Ray deletes later; a relative
    output then means the submitting user's home on the head node.
    """
    if "://" in output or os.path.isabs(output):
        return output
    if "runtime_resources" in Path.cwd().parts:
        return str(Path.home() / "dri-iqa" / output)
    return str(Path.cwd() / output)


def git_commit() -> str:
    """The commit of the running code; else `unknown`.

    `DRI_IQA_COMMIT` says it for a folder that `make submit` sent, `.commit` for an image, git for a checkout.
    """
    if told := os.environ.get("DRI_IQA_COMMIT"):
        return told
    root = Path(__file__).resolve().parents[2]
    if (stated := root / ".commit").is_file():
        return stated.read_text().strip()
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # images do without git
        return "unknown"
    return answer.stdout.strip() if answer.returncode == 0 else "unknown"


def versions() -> dict[str, str]:
    """Versions that decide a run's numbers."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM ends the process as an interrupt does: runs are closed, and a Ray of its own ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would end the tidying up
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _identity(config: JobConfig) -> dict[str, Any]:
    """What decides a job's results: everything but where it writes and how loud it is."""
    from pipelines.runtime.cluster import is_attached

    values = to_dict(config)
    for key in ("output", "run", "verbose", "dry_run", "tracking", "serve"):
        values.pop(key)
    values["registry"] = {"name": config.registry.name}
    values["cluster"] = {"attached": is_attached(config.cluster), "workers": config.cluster.workers}
    return values


def mendable(error: BaseException | None) -> BaseException | None:
    """The error of ours inside Ray's wrappers, if that is what it was."""
    from dri_iqa.bundle import BundleError
    from dri_iqa.data.records import DataError
    from pipelines.runtime.cluster import ClusterError
    from pipelines.runtime.failures import TrainingError
    from pipelines.runtime.mlflow_server import TrackingError
    from pipelines.runtime.preflight import PreflightError
    from pipelines.runtime.promotion import RegistryError

    ours = (
        ConfigError,
        DataError,
        BundleError,
        storage.StorageError,
        ClusterError,
        PreflightError,
        RegistryError,
        TrackingError,
        TrainingError,
    )
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, ours):
            return getattr(error, "cause", None) or error
        causes = list(getattr(error, "worker_failures", {}).values())
        error = causes[0] if causes else getattr(error, "cause", None) or error.__cause__
        seen += 1
    return None


def brief(error: BaseException) -> str:
    """The first line of what went wrong, for a table."""
    cause = mendable(error) or error
    lines = storage.redact(str(cause)).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__


def _complain(what: str, then: str) -> None:
    print(f"error: {storage.redact(what)}\nnext: {storage.redact(then)}", file=sys.stderr)
