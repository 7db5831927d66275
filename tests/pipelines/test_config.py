from __future__ import annotations

import pytest

from dri_iqa.config import ConfigError, to_dict
from pipelines.runtime.config import (
    Dimension,
    JobConfig,
    compose,
    digest,
    groups,
    replace_keys,
    to_yaml,
)

JOBS = ("full", "ingest", "pretrain", "train", "tune", "evaluate", "register", "score")


@pytest.mark.parametrize("job", JOBS)
def test_every_root_file_composes(job: str) -> None:
    assert compose(job, []).job == job


@pytest.mark.parametrize(
    "override", [f"{group}={option}" for group, options in groups().items() for option in options]
)
def test_every_option_of_every_group_composes(override: str) -> None:
    assert isinstance(compose("full", [override]), JobConfig)


def test_dotted_overrides_win_over_groups() -> None:
    config = compose("full", ["preset=tiny", "stage1.optim.lr=1e-4", "model.ram.guidance=add"])
    assert (config.stage1.optim.lr, config.model.ram.guidance, config.model.crop) == (
        1e-4,
        "add",
        64,
    )


def test_one_number_or_one_per_group() -> None:
    config = compose("full", ["stage1.degrade.p_keep={blur: 0.2}"])
    assert config.stage1.degrade.p_keep == {"blur": 0.2}


def test_an_empty_preset_is_the_paper() -> None:
    config = compose("full", ["preset=paper"])
    assert to_dict(config.model) == to_dict(JobConfig().model)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage1.optm.lr=1", ["stage1.optm.lr", "did you mean stage1.optim.lr?"]),
        ("stge1.optim.lr=1", ["stge1.optim.lr", "stage1.optim.lr"]),
        ("data=koniq11k", ["koniq11k", "did you mean koniq10k?"]),
        ("preset=tinny", ["tinny", "did you mean tiny?"]),
        ("stage1.optim.lr=fast", ["stage1.optim.lr", "'fast'", "number"]),
        ("stage2.variant=v9", ["stage2.variant", "'v9'", "'proposed'"]),
        ("model.crop", ["model.crop", "="]),
        ("search.space.seed={key: seed, lo: 1}", ["search.space.seed.lo"]),
    ],
)
def test_errors_name_the_key_and_the_nearest_valid_one(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose("full", [override])
    for word in words:
        assert word in str(caught.value)


def test_data_is_never_evaluated() -> None:
    config = compose("full", ["run='__import__(\"os\").getcwd()'"])
    assert config.run == '__import__("os").getcwd()'


def test_replace_keys_checks_like_the_command_line() -> None:
    config = replace_keys(JobConfig(), {"stage1.moco.temperature": 0.2})
    assert config.stage1.moco.temperature == 0.2
    with pytest.raises(ConfigError, match=r"stage1\.moco\.temprature.*stage1\.moco\.temperature"):
        replace_keys(JobConfig(), {"stage1.moco.temprature": 0.2})


def test_the_yaml_of_a_run_is_the_whole_configuration() -> None:
    text = to_yaml(compose("full", ["seed=7"]))
    assert "seed: 7" in text
    assert "temperature: 0.07" in text


def test_digest_depends_on_content_only() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_dimensions_are_data() -> None:
    config = compose(
        "full",
        [
            "search.space={seed: {key: seed, choices: [1, 2]}}",
            "search.space.temperature.choices=[0.1]",
            "~search.space.lambda",
        ],
    )
    assert config.search.space["seed"] == Dimension(key="seed", choices=(1.0, 2.0))
    assert config.search.space["temperature"].choices == (0.1,)
    assert "lambda" not in config.search.space
