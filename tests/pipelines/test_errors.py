"""What a person did wrong is said in two lines, with an exit code that is not 0."""

from __future__ import annotations

from pathlib import Path

from tests.pipelines import jobs


def complaint(*arguments: str, output: Path) -> str:
    answer = jobs.run("full", f"output={output}", *arguments, timeout=120)
    assert answer.returncode == 2, answer.stdout + answer.stderr
    lines = [line for line in answer.stderr.splitlines() if line.startswith(("error: ", "next: "))]
    assert [line.partition(":")[0] for line in lines] == ["error", "next"]
    assert "Traceback" not in answer.stderr
    return answer.stderr


def test_unknown_key(tmp_path: Path) -> None:
    said = complaint("stage1.optm.lr=1", output=tmp_path)
    assert "stage1.optm.lr" in said
    assert "did you mean stage1.optim.lr?" in said


def test_no_write_permission(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where a folder is wanted")
    assert str(tmp_path / "file") in complaint(output=tmp_path / "file" / "runs")


def test_mlflow_server_not_reachable(tmp_path: Path) -> None:
    said = complaint("tracking=server", "tracking.uri=http://127.0.0.1:9", output=tmp_path)
    assert "no MLflow server answers at http://127.0.0.1:9" in said


def test_missing_data_root(tmp_path: Path) -> None:
    settings = ("cluster=none", "data=biq2021", f"data.root={tmp_path / 'nowhere'}")
    said = complaint(*settings, output=tmp_path / "runs")
    assert "nowhere" in said


def test_empty_data_set(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,score\n")
    settings = ("cluster=none", "data=csv", f"data.root={tmp_path}")
    said = complaint(*settings, output=tmp_path / "runs")
    assert "labels.csv has no rows" in said


def test_score_column_missing(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,opinion\na.png,1\n")
    settings = ("cluster=none", "data=csv", f"data.root={tmp_path}")
    said = complaint(*settings, output=tmp_path / "runs")
    assert "score" in said
    assert "opinion" in said
