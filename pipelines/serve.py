"""The scoring service: a page, `POST /score`, `GET /health`; docs/serving.md.

`python pipelines/serve.py` runs it on this machine until it is interrupted; on a cluster, `serve deploy
infra/serve.yaml` takes `application` from here.
"""

from __future__ import annotations

import signal
import threading

from pipelines.runtime.job import Job, main
from pipelines.runtime.serving import application, service

__all__ = ["application"]


def steps(job: Job) -> None:
    """The job: serve until Ctrl-C or SIGTERM."""
    job.console.headline("serve")
    stop = threading.Event()
    with service(job.config.serve, job.config.cluster, verbose=job.config.verbose) as address:
        for number in (signal.SIGINT, signal.SIGTERM):  # Ray has put its own handlers there
            signal.signal(number, lambda *_: stop.set())
        job.console.say(f"metrics on {address.metrics}")
        job.console.say(f"{address.page} is ready; Ctrl-C ends it")
        stop.wait()
    job.console.say("ended")


if __name__ == "__main__":
    main("serve", steps)
