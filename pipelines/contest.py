"""A candidate against the champion: both score the same test images, and references or scenes are resampled."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd

from dri_iqa import storage
from dri_iqa.data.batches import Source
from dri_iqa.evaluation.metrics import paired_interval, srocc, undefined
from pipelines.runtime import registry
from pipelines.runtime.job import Job, Result
from pipelines.runtime.promotion import Comparison, RegistryError, Tags
from pipelines.testing import score_ids

FORCE_ADVICE = "registry.force=true overrules, registry.name=NAME keeps a champion of its own"


def against_champion(
    job: Job, source: Source, tested: Result, facts: Tags, champion: str, theirs: Tags
) -> Comparison:
    """Compare a tested model with a registered version.

    Args:
        job: gives crops, resamples and the cluster.
        source: the images that were tested on.
        tested: result of the evaluation.
        facts: of the candidate, as its version's tags have them.
        champion: version of the champion.
        theirs: its tags.
    """
    if theirs.get("bundle_sha256") == facts["bundle_sha256"]:
        return Comparison(better=False, text=f"it is the champion's model (version {champion})")
    if reason := incomparable(facts, theirs):
        text = f"no comparison with the champion (version {champion}), {reason}; {FORCE_ADVICE}"
        return Comparison(better=False, text=text)
    data = storage.read_bytes(tested["predictions"])
    ours = pd.read_csv(io.BytesIO(data)).set_index("image_id")
    copy = storage.join(job.directory, f"champion-{champion}")
    try:
        registry.copy_bundle(job.tracker, job.config.registry.name, champion, copy)
        with job.console.progress(f"the champion (version {champion}) on the same images") as meter:
            scored = score_ids(job, copy, source, ours.index.tolist(), meter)
    except RegistryError as error:
        return Comparison(better=False, text=f"no comparison, {str(error).splitlines()[0]}")
    finally:
        storage.delete(copy)
    both = ours.assign(champion=scored["score"]).dropna(subset=["champion"])
    return judge(
        both["score"].to_numpy(),
        both["champion"].to_numpy(),
        both["given"].to_numpy(),
        both["group"].to_numpy(),
        champion=champion,
        seed=job.config.seed,
        n=job.config.evaluate.bootstrap,
    )


def incomparable(facts: Tags, theirs: Tags) -> str:
    """Why two versions were not tested on the same images with the same scores; empty where they were.

    Another split of the same data will not do: the champion may have been trained on what the candidate is tested on.
    """
    here, there = (
        f"{tags.get('data', 'unknown data')} ({tags.get('kind', 'unknown')} scores)"
        for tags in (facts, theirs)
    )
    if here != there:
        return f"which was tested on {there}, this one on {here}"
    if facts["manifest"] != theirs.get("manifest"):
        return f"which was tested on other images of {there}"
    if facts["split"] != theirs.get("split"):
        return f"which knows another split of {there} and may have been trained on these images"
    return ""


def judge(
    ours_N: np.ndarray,
    theirs_N: np.ndarray,
    given_N: np.ndarray,
    group_N: np.ndarray,
    *,
    champion: str,
    seed: int,
    n: int,
) -> Comparison:
    """Better is whose SROCC is higher by an interval that lies above 0.

    Args:
        ours_N: the candidate's scores.
        theirs_N: the champion's scores of the same images.
        given_N: what people, or a measure, gave them.
        group_N: reference or scene of each image; what is resampled, at least two.
        champion: its version, to be named.
        seed: of the resamples.
        n: resamples.
    """
    mine, other = srocc(ours_N, given_N), srocc(theirs_N, given_N)
    groups = len(np.unique(group_N))
    text = f"SROCC {mine:.3f} against the champion's {other:.3f} (version {champion})"
    if reason := undefined(ours_N, given_N):
        return Comparison(better=False, text=f"{text}, its {reason}")
    if reason := undefined(theirs_N, given_N):
        return Comparison(better=True, text=f"{text}, whose {reason}")
    found = paired_interval(srocc, ours_N, theirs_N, given_N, group_N, seed=seed, n=n)
    numbers = {
        "srocc_difference": found.estimate,
        "srocc_difference_low": found.low,
        "srocc_difference_high": found.high,
    }
    text += f", difference {found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    text += f" over {groups} references or scenes"
    return Comparison(better=groups > 1 and found.low > 0, text=text, numbers=numbers)
