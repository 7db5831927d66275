"""What the report of a job takes from its steps' results."""

from __future__ import annotations

from pathlib import Path

from dri_iqa.data.records import DataSet, Record
from pipelines.report import NO_ORDER, _before_and_after, _tested
from tests.pipelines.toy import ingested, picture

HEAD = "image_id,score,std,error,name,group,type,level,subset,given\n"


def test_predictions_keep_names_that_look_like_numbers_or_like_nothing(tmp_path: Path) -> None:
    records = tuple(Record(name=f"0{n}", data=picture(n), score=1.0, group="g") for n in range(3))
    reader = ingested(tmp_path / "data", DataSet(name="toy", records=records)).open()
    file = tmp_path / "predictions.csv"
    file.write_text(HEAD + "0,1.5,0.1,,00,g,01,2.0,,1.0\n2,2.5,0.1,,02,g,None,,NA,1.0\n")
    first, second = _tested(reader, str(file))
    assert (first["name"], first["type"], first["level"], first["subset"]) == ("00", "01", 2, None)
    assert (second["type"], second["level"], second["subset"]) == ("None", None, "NA")
    assert first["reference"] is None
    assert first["recipe"] is None
    assert (first["score"], first["given"], first["image_id"]) == (1.5, 1.0, 0)


def test_a_model_that_orders_nothing_is_not_shown_as_nan() -> None:
    """As a linear readout before it is fitted."""
    example = {"name": "a.jpg", "score": 0.5, "given": 0.4}
    tested = {"srocc": 0.8, "example": example}
    for before, shown in ((float("nan"), NO_ORDER), (-0.1, -0.1)):
        made = {"untrained": {"srocc": before, "example": 0.0}, "test": tested, "stage2": {}}
        assert _before_and_after(made)[0] == {"what": "test SROCC", "before": shown, "after": 0.8}
