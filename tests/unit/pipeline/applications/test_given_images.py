"""A user's own images, as verbs take them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.applications.given_images import read
from pipeline.applications.made_images import written
from pipeline.errors import UserError
from pipeline.files import disk_trouble, make_folder
from tests.unit.pipeline.data.clips import animation, frames


def test_where_nothing_can_be_written_is_one_line() -> None:
    with pytest.raises(UserError, match=r"/proc/none: cannot be made \(No such file or directory\); give another path"):
        make_folder(Path("/proc/none"))
    for file in ("/proc/none.json", f"{__file__}/none.json"):
        with pytest.raises(UserError, match=rf"--out {file}: cannot be written \(.*\); give another path"):
            written(Path(file), {}, Path.read_text)
    for number in (errno.EACCES, errno.EPERM, errno.EROFS):
        with pytest.raises(UserError, match=r"here/x: .*give rights there"), disk_trouble():
            raise OSError(number, os.strerror(number), "here/x")


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_of_an_animation_the_first_frame_is_taken_which_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    file, pictures = tmp_path / f"moving.{ending}", frames(3, side=8, first=2)
    animation(file, pictures)
    assert (read(file, 3, (8, 8)) == pictures[0]).all()
    assert capsys.readouterr().out == f"{file}: is animated, and this takes its first frame\n"
