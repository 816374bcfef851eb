"""Folders of images: nothing in them is missed, and no file changes its place in the split."""

import os
import warnings

import numpy as np
import pytest
from sources import everything, png, random_pixels, save

from diffkit.data import ImageFolder


def fill(folder, count, first=0, ending="png"):
    for i in range(first, first + count):
        save(folder, f"{i:03}.{ending}", random_pixels(2, 2, 3, seed=i))


def names(source):
    return {source.source.names[i] for i in source.indices}


def test_a_file_that_is_added_or_removed_moves_no_other(tmp_path):
    fill(tmp_path, 40, first=100)
    before = ImageFolder(tmp_path)
    fill(tmp_path, 1)  # which sorts first
    after = ImageFolder(tmp_path)
    for old, new in ((before.train, after.train), (before.test, after.test)):
        assert names(old) <= names(new)
        assert names(new) - names(old) <= {"000.png"}
    assert len(after.train) + len(after.test) == 41
    gone = sorted(names(after.train))[3]
    os.remove(tmp_path / gone)
    assert names(ImageFolder(tmp_path).test) == names(after.test)
    # Wherever the folder is.
    os.rename(tmp_path, tmp_path.with_name("elsewhere"))
    assert names(ImageFolder(tmp_path.with_name("elsewhere")).test) == names(after.test)


def test_the_fraction_of_test_images_is_met_on_average(tmp_path):
    from diffkit.data.reading import split_by_name

    train, test = split_by_name([f"{i}.png" for i in range(20_000)], 0.1, 3, "here")
    assert len(test) == pytest.approx(2000, abs=4 * np.sqrt(20_000 * 0.09))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(20_000))
    # Independent of the platform and the version: older runs rely on it.
    assert test[:5].tolist() == [2, 25, 27, 28, 32]


def test_a_split_with_an_empty_part_is_refused_with_a_seed_that_has_none(tmp_path):
    fill(tmp_path, 3)
    seeds = [seed for seed in range(30) if not _is_taken(tmp_path, seed)]
    assert seeds
    with pytest.raises(
        ValueError, match=r"no image of 3 for test, .* another seed, such as seed=(\d+)"
    ) as e:
        ImageFolder(tmp_path, seed=seeds[0])
    better = int(str(e.value).split("such as seed=")[1].split(",")[0])
    assert len(ImageFolder(tmp_path, seed=better).test) > 0


def _is_taken(folder, seed):
    try:
        ImageFolder(folder, seed=seed)
    except ValueError:
        return False
    return True


def test_links_to_folders_are_followed_once(tmp_path):
    inside, outside = tmp_path / "photos", tmp_path / "disk"
    fill(inside, 4)
    fill(outside, 4, first=4)
    (inside / "more").symlink_to(outside)
    (inside / "again").symlink_to(outside)  # the same folder
    (outside / "back").symlink_to(inside)  # a circle
    (inside / "one.png").symlink_to(outside / ".." / "apart.png")
    save(tmp_path, "apart.png", random_pixels(2, 2, 3, seed=9))
    data = ImageFolder(inside, test_fraction=0.5)
    found = np.concatenate([everything(data.train), everything(data.test)])
    assert len({image.tobytes() for image in found}) == len(found) == 9


def test_an_image_on_which_training_and_test_would_meet_is_named(tmp_path):
    fill(tmp_path / "train", 3)
    fill(tmp_path / "test", 1, first=5)
    (tmp_path / "test" / "seen.png").symlink_to(tmp_path / "train" / "001.png")
    with pytest.raises(ValueError, match=r"train/001\.png'.*test/seen\.png'.* are one file"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: (p / "gone").symlink_to(p / "nowhere"), r"gone' is a broken link"),
        (lambda p: (p / "gone.png").symlink_to(p / "nowhere.png"), r"gone\.png' is a broken link"),
        (
            lambda p: (p / "phone.HEIC").write_bytes(b""),
            r"phone\.HEIC' is an image in a format that",
        ),
        (lambda p: os.mkfifo(p / "pipe.png"), r"pipe\.png' is not a file"),
        (lambda p: (p / "text.png").write_text("no image"), r"text\.png' is not an image"),
        (lambda p: (p / "deep.png").write_bytes(png(16, 2)), r"deep\.png' would not be kept"),
    ],
    ids=["broken_folder", "broken", "format", "pipe", "text", "deep"],
)
def test_what_would_be_missed_is_named_or_skipped_and_counted(tmp_path, make, message):
    fill(tmp_path, 12)
    whole = ImageFolder(tmp_path, test_fraction=0.3)
    make(tmp_path)
    with pytest.raises(ValueError, match=message + r".*skip_bad=true leaves them out"):
        ImageFolder(tmp_path, test_fraction=0.3)
    with pytest.warns(UserWarning, match="skip_bad leaves out 1 "):
        data = ImageFolder(tmp_path, test_fraction=0.3, skip_bad=True)
    assert (names(data.train), names(data.test)) == (names(whole.train), names(whole.test))


def test_damage_behind_the_header_is_skipped_too(tmp_path):
    fill(tmp_path, 12)
    whole = ImageFolder(tmp_path, test_fraction=0.3)
    bad = sorted(names(whole.train))[2]
    content = (tmp_path / bad).read_bytes()
    (tmp_path / bad).write_bytes(content[:50] + bytes(len(content) - 50))
    with pytest.warns(UserWarning, match=rf"skip_bad leaves out 1 of 12 files: {bad}; .*{bad}' cannot be"):
        data = ImageFolder(tmp_path, test_fraction=0.3, skip_bad=True)
    assert data.train.source.skipped == (bad,)
    assert names(data.train) == names(whole.train) - {bad}


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    fill(tmp_path / "closed", 12)
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", closed)
        with pytest.raises(PermissionError, match=r"Permission denied: .*closed"):
            ImageFolder(tmp_path)


def test_what_is_left_out_on_purpose(tmp_path):
    fill(tmp_path, 12)
    fill(tmp_path / ".thumbnails", 2)
    save(tmp_path, ".hidden.png", random_pixels(9, 9))
    (tmp_path / "notes.txt").write_text("not an image")
    save(tmp_path, "upper.PNG", random_pixels(2, 2, 3, seed=20))
    save(tmp_path, "000.bmp", random_pixels(2, 2, 3, seed=21))  # beside 000.png
    data = ImageFolder(tmp_path, test_fraction=0.3)
    assert len(data.train) + len(data.test) == 14


def test_images_beside_train_and_test_are_named(tmp_path):
    fill(tmp_path / "train", 2)
    fill(tmp_path / "test", 1, first=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageFolder(tmp_path)
    fill(tmp_path / "val", 2, first=3)
    with pytest.warns(UserWarning, match=r"2 images .* are not in train or test, .*'val/003\.png'"):
        ImageFolder(tmp_path)
    os.rename(tmp_path / "test", tmp_path / "Test")
    with pytest.raises(ValueError, match="as 'train' and 'test', got 'Test'"):
        ImageFolder(tmp_path)
