import numpy as np
import pytest
import torch

from support.tiny_detectors import HEALTHY, SMOOTH, context
from support.tiny_detectors import TINY as EVERY
from wsiad.core.config import build
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors.uninformed_students import UninformedStudents, UninformedStudentsOptions
from wsiad.learning.detector import InputSpec
from wsiad.testing import check_detector

TINY = {**EVERY["uninformed-students"], "batch": 6, "val_interval": 4, "log_interval": 2}


def fitted(folder, *, steps=5, **options):
    folder.mkdir(exist_ok=True)
    built = build(UninformedStudentsOptions, {**TINY, **options})
    found = UninformedStudents(built, InputSpec(TilePx(32), Mpp(1)))
    return found, found.fit(HEALTHY, context(folder, steps))


@pytest.mark.parametrize("options", [{}, {"patches": [17, 33], "students": 3}])
def test_options_conform(options):
    check_detector(UninformedStudents, {**TINY, **options}, input_px=32)


def test_a_killed_training_ends_with_the_same_weights(tmp_path):
    whole = fitted(tmp_path / "whole", steps=9)[0].state()
    fitted(tmp_path / "killed", steps=4)
    again = fitted(tmp_path / "killed", steps=9)[0].state()
    assert_equal(whole, again)


def test_teachers_that_were_killed_end_with_the_same_weights(tmp_path):
    whole = fitted(tmp_path / "whole", steps=8, teacher_steps=8)[0].state()
    fitted(tmp_path / "killed", steps=5, teacher_steps=8)
    for path in (tmp_path / "killed").iterdir():
        if path.is_file():  # the students had not begun
            path.unlink()
    again = fitted(tmp_path / "killed", steps=8, teacher_steps=8)[0].state()
    assert_equal(whole, again)


def assert_equal(whole, again):
    for key, tensor in whole.tensors.items():
        assert torch.equal(tensor, again.tensors[key]), key


def test_the_run_records_the_teachers_and_does_not_need_the_backbone(tmp_path):
    found, report = fitted(tmp_path / "run")
    assert report.notes["backbone"] == "squeezenet1_1"
    assert report.notes["teachers"]["steps"] == 3
    assert not [name for name in found.state().tensors if "readers" in name or "backbone" in name]


def test_students_change_and_teachers_stay_in_the_second_training(tmp_path):
    short = fitted(tmp_path / "short", steps=3)[0].state().tensors
    long = fitted(tmp_path / "long", steps=8)[0].state().tensors
    assert all(torch.equal(short[k], long[k]) for k in short if k.startswith("teachers."))
    assert not all(torch.equal(short[k], long[k]) for k in short if k.startswith("students."))


def test_held_out_healthy_places_have_the_mean_zero(tmp_path):
    found, _ = fitted(tmp_path / "run")
    centre = SMOOTH[20:, 4:36, 4:36]
    assert abs(float(found.score(np.ascontiguousarray(centre)).mean())) < 0.2


def test_a_size_that_is_named_twice_is_refused():
    with pytest.raises(ValueError, match="names a size twice"):
        UninformedStudentsOptions(patches=(17, 17))
