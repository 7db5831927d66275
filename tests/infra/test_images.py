"""Dockerfile and compose.yaml: the properties that matter, read from the files (no engine is needed)."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.runtime import config as configuration

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY")
PINNED = re.compile(r"^[a-z0-9./-]+:[A-Za-z0-9._-]*\d[A-Za-z0-9._-]*$")
"""An image with a tag that holds a version."""


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    lines = [line for line in (INFRA / "Dockerfile").read_text().splitlines() if line[:1] != "#"]
    text = "\n".join(lines).replace("\\\n", " ")
    return [
        (line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()
    ]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage -> its instructions, those of the stage it builds on first."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = list(found.get(base, []))
        elif name:
            found[name].append((word, rest))
    return found


def values(stage: str, word: str) -> list[str]:
    return [rest for name, rest in stages()[stage] if name == word]


def test_bases_are_pinned() -> None:
    defaults = dict(
        rest.split("=") for word, rest in instructions() if word == "ARG" and "=" in rest
    )
    bases = {rest.partition(" AS ")[0] for word, rest in instructions() if word == "FROM"}
    outside = {base for base in bases if base not in stages()}
    assert outside == {"${BASE}"}
    assert PINNED.match(defaults["BASE"])
    assert "latest" not in (INFRA / "Dockerfile").read_text()


@pytest.mark.parametrize("stage", ["ray", "mlflow"])
def test_nothing_runs_as_root_or_knows_a_secret(stage: str) -> None:
    assert values(stage, "USER")[-1] == "10001:10001"
    known = values(stage, "ENV") + values(stage, "ARG")
    assert not any(SECRET.search(rest) for rest in known)
    assert not values(stage, "ADD")


@pytest.mark.parametrize("stage", ["ray", "mlflow"])
def test_packages_come_in_the_tested_versions(stage: str) -> None:
    installs = [rest for rest in values(stage, "RUN") if "pip install" in rest]
    assert installs
    for command in installs:
        assert "-c constraints.txt" in command or "--no-deps" in command
    apt = [rest for rest in values(stage, "RUN") if "apt-get install" in rest]
    assert all(
        "--no-install-recommends" in rest and "rm -rf /var/lib/apt/lists" in rest for rest in apt
    )


def test_the_working_directory_is_the_installed_project() -> None:
    places = [(word, rest) for word, rest in stages()["ray"] if word in ("WORKDIR", "COPY", "RUN")]
    (start,) = [index for index, place in enumerate(places) if place[0] == "WORKDIR"]
    copied = {rest.split()[0] for word, rest in places[start:] if word == "COPY"}
    assert {"conf", "dri_iqa", "pipelines", "pyproject.toml"} <= copied
    assert any(
        "pip install --no-deps -e ." in rest for word, rest in places[start:] if word == "RUN"
    )
    ignored = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    assert next(line for line in ignored if line[:1] != "#") == "*", "what is not named is not sent"
    allowed = {line[1:] for line in ignored if line[:1] == "!"}
    sources = [rest.split()[:-1] for word, rest in stages()["ray"] if word == "COPY"]
    assert {name for names in sources for name in names} == allowed
    assert all((ROOT / name).exists() for name in allowed)


def test_a_ray_without_a_token_does_not_start() -> None:
    assert any("RAY_AUTH_MODE=token" in rest for rest in values("ray", "ENV"))


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_confined(name: str) -> None:
    service = SERVICES[name]
    assert PINNED.match(service["image"])
    assert "latest" not in service["image"]
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:")
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["cap_drop"] == ["ALL"]
    assert not {"privileged", "network_mode", "pid", "user"} & set(service)
    assert not any("docker.sock" in volume for volume in service.get("volumes", ()))


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "buckets"])
def test_services_are_watched_and_started_again(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert SERVICES[name]["healthcheck"]["test"]


def test_services_start_when_what_they_need_is_there() -> None:
    waits = {
        name: {other: how["condition"] for other, how in service.get("depends_on", {}).items()}
        for name, service in SERVICES.items()
    }
    assert waits["mlflow"] == {
        "postgres": "service_healthy",
        "buckets": "service_completed_successfully",
    }
    assert waits["ray-worker"] == {"ray-head": "service_healthy"}
    assert set(SERVICES["postgres"]["networks"]) == {"registry"}
    assert COMPOSE["networks"]["registry"] == {"internal": True}


def test_no_secret_has_a_value() -> None:
    stated = {
        key: value
        for service in SERVICES.values()
        for key, value in service.get("environment", {}).items()
    }
    secrets = {key: value for key, value in stated.items() if SECRET.search(key)}
    assert secrets
    for key, value in secrets.items():
        assert re.fullmatch(r"\$\{[A-Z_]+:\?set it in infra/\.env\}", value), key
    assert "${POSTGRES_PASSWORD:?" in stated["MLFLOW_BACKEND_STORE_URI"]
    commands = [word for service in SERVICES.values() for word in service.get("command", ())]
    assert not any(SECRET.search(word) for word in commands), "arguments are seen by everyone"
    example = dict(
        line.split("=")
        for line in (INFRA / ".env.example").read_text().splitlines()
        if line and line[0] != "#"
    )
    assert {
        example[name] for name in ("RAY_AUTH_TOKEN", "POSTGRES_PASSWORD", "AWS_SECRET_ACCESS_KEY")
    } == {""}


def test_secrets_are_drawn_once(tmp_path: Path) -> None:
    (tmp_path / "infra").mkdir()
    (tmp_path / "infra" / ".env.example").write_bytes((INFRA / ".env.example").read_bytes())

    def draw() -> str:
        command = ["make", "--silent", "-f", str(INFRA / "infra.mk"), "infra/.env"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        return (tmp_path / "infra" / ".env").read_text()

    first = draw()
    drawn = re.findall(r"^[A-Z_]+=([0-9a-f]{40})$", first, re.MULTILINE)
    assert len(set(drawn)) == 3
    assert (tmp_path / "infra" / ".env").stat().st_mode & 0o077 == 0
    (tmp_path / "infra" / ".env.example").touch()
    assert draw() == first


def test_the_job_of_the_compose_path_is_one_that_the_project_takes() -> None:
    words = shlex.split(
        (INFRA / "infra.mk").read_text().partition("compose-job:")[2].splitlines()[1]
    )
    start = words.index("pipelines/full.py")
    config = configuration.compose("full", [word for word in words[start + 1 :] if "=" in word])
    assert config.tracking.uri == "http://mlflow:5000"
    assert config.output == "s3://dri-iqa/runs"
    assert "s3://dri-iqa" in SERVICES["buckets"]["command"]


def test_the_commit_of_an_image_is_told(tmp_path: Path) -> None:
    """An image has neither a checkout nor git; its build writes the commit down."""
    assert any('"${COMMIT}" > .commit' in rest for rest in values("ray", "RUN"))
    code = "from pipelines.runtime.job import git_commit; print(git_commit())"
    shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines")
    shutil.copytree(ROOT / "conf", tmp_path / "conf")

    def told() -> str:
        command = [sys.executable, "-c", code]
        environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "", "HOME": str(tmp_path)}
        answer = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return answer.stdout.strip()

    assert told() == "unknown"
    (tmp_path / ".commit").write_text("0123abcd\n")
    assert told() == "0123abcd"
