"""The paper's data sets when files are missing, damaged or of another set: one error that says what and where."""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from art_fingerprint.exceptions import DatasetError
from art_fingerprint.zoo import cifar, imagenet
from art_fingerprint.zoo.datasets import load_dataset
from art_fingerprint.zoo.image_sets import IMAGE_SETS
from tests import photo_sets
from tests.photo_sets import picture


def refused(name: str, root: Path | None, **options: Any) -> str:
    """Load a data set that cannot be loaded and return the message."""
    with pytest.raises(DatasetError) as caught:
        load_dataset(name, root=root, **{"size": 16, **options})
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit(path: Path, line: int, change: Callable[[str], str]) -> None:
    """Change one line of a text file, counted from 1."""
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = change(lines[line - 1])
    path.write_text("".join(lines))


def keep_lines(path: Path, count: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))


# ---------------------------------------------------------------------- missing
@pytest.mark.parametrize("name", IMAGE_SETS)
def test_a_missing_set_says_what_to_put_where(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = IMAGE_SETS[name].place
    message = refused(name, tmp_path)
    assert message.startswith(f"{place.title}: {tmp_path / place.folders[0]} does not exist")
    assert "`root` of load_dataset() or the environment variable ART_FINGERPRINT_DATA" in message
    assert message.endswith(place.advice)
    assert "<folder>" in place.advice
    (tmp_path / place.folders[0]).mkdir(parents=True)
    assert f"{tmp_path / place.folders[0]} has no " in refused(name, tmp_path)
    monkeypatch.delenv("ART_FINGERPRINT_DATA", raising=False)
    assert "no folder is given" in refused(name, None)
    assert place.advice in refused(name, None)


@pytest.mark.parametrize(
    ("name", "gone", "message"),
    [
        ("gtsrb", "gtsrb/GT-final_test.csv", r"gtsrb has no GT-final_test\.csv or "),
        ("ham10000", "ham10000/HAM10000_images_part_2", r"ham10000 has no [^;]*HAM10000_images_part_2 or ham10000_"),
        ("ham10000", "bcn20000/bcn_20k_train.csv", r"^BCN20000: .*bcn20000 has no bcn_20k_train\.csv or "),
        (
            "isic2018",
            "isic2018/ISIC2018_Task3_Test_GroundTruth",
            "has no ISIC2018_Task3_Test_GroundTruth/ISIC",
        ),
        ("celeba-20", "celeba/img_align_celeba", "has no img_align_celeba/img_align_celeba"),
        ("cinic10", "cinic10/valid", "has no valid;"),
    ],
)
def test_a_missing_part_is_named(tmp_path: Path, name: str, gone: str, message: str) -> None:
    for maker in photo_sets.MAKERS[name]:
        maker(tmp_path)
    path = tmp_path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert re.search(message, refused(name, tmp_path))


# ---------------------------------------------------------------------- CIFAR-10
class Harmful:
    """Runs code when it is unpickled by a reader that trusts files."""

    ran: list[str] = []  # noqa: RUF012

    def __reduce__(self) -> tuple[Any, ...]:
        return _harm, ("here",)


def _harm(where: str) -> None:
    Harmful.ran.append(where)


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return photo_sets.make_cifar10(tmp_path, monkeypatch)


def test_a_changed_batch_is_refused_before_it_is_unpickled(batches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = batches / "data_batch_3"
    content = path.read_bytes()
    monkeypatch.setattr(cifar._ArraysOnly, "load", lambda _self: pytest.fail("it was unpickled"))
    for damaged in (content[:-5], b"", content[:-1] + b"\0", pickle.dumps(Harmful())):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=rf"data_batch_3 \({len(damaged)} bytes\) is not what was published"):
            cifar.read_batch(path, cifar.TRAINING_BATCHES["data_batch_3"])


@pytest.mark.parametrize(
    "value",
    [Harmful(), {"data": Harmful()}, [np.array([Harmful()], dtype=object)], {"labels": print}, {"labels": Path("/")}],
    ids=["object", "inside", "array of objects", "function", "path"],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_batch_runs_no_code_even_if_its_digest_fits(batches: Path, value: Any, protocol: int) -> None:
    Harmful.ran.clear()
    path = batches / "data_batch_1"
    path.write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(DatasetError, match=r"data_batch_1 cannot be read as a batch: UnpicklingError: it calls"):
        cifar.read_batch(path, photo_sets.md5(path))
    assert Harmful.ran == []
    pickle.loads(pickle.dumps(Harmful()))
    assert Harmful.ran == ["here"]  # the trap works


ISIC_TEST = "ISIC2018_Task3_Test_GroundTruth"
PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_batch_pickled_again_is_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "batch"
    pixels = photo_sets.cifar_pixels(0, 4)
    path.write_bytes(pickle.dumps({"data": pixels, "labels": [3, 1, 2, 0]}, protocol))
    if protocol == 5:  # NumPy pickles through a function of its own there, which no published batch calls
        with pytest.raises(DatasetError, match="_frombuffer"):
            cifar.read_batch(path, None)
        return
    x, y = cifar.read_batch(path, None)
    np.testing.assert_array_equal(x.transpose(0, 3, 1, 2).reshape(4, 3072), pixels)
    assert y.tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "no array `data`"),
        ({"labels": [1, 2]}, "no array `data`"),
        ({"data": PIXELS[:, :100], "labels": [1, 2]}, "no array `data`"),
        ({"data": PIXELS.astype(np.float32), "labels": [1, 2]}, "no array `data`"),
        ({"data": PIXELS, "labels": [1]}, "no list `labels` of 2 numbers"),
        ({"data": PIXELS, "labels": [1, 10]}, "no list `labels` of 2 numbers"),
        ({"data": PIXELS, "fine_labels": [1, 2]}, "no list `labels` of 2 numbers"),  # CIFAR-100
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(value, 2))
    with pytest.raises(DatasetError, match=message):
        cifar.read_batch(path, None)


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"<html>", b"\x80\x02}q\x01(U", b"\xff" * 50])
def test_no_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(DatasetError, match="cannot be read as a batch"):
        cifar.read_batch(tmp_path / "batch", None)


def test_a_batch_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        cifar.read_batch(tmp_path / "batch", None)


# ---------------------------------------------------------------------- folders of classes
def test_mixed_up_class_folders(tmp_path: Path) -> None:
    train = photo_sets.make_cinic10(tmp_path) / "train"
    (train / ".cache").mkdir()
    (train / "README.txt").write_text("fine")
    load_dataset("cinic10", root=tmp_path, size=16)
    (train / "apple").mkdir()
    assert "train has a folder 'apple', which is no class; classes are airplane, " in refused("cinic10", tmp_path)
    (train / "apple").rmdir()
    shutil.rmtree(train / "frog")
    assert "train has no folder for 1 of 10 classes: frog" in refused("cinic10", tmp_path)
    (train / "frog").mkdir()
    assert "frog holds no image of this set" in refused("cinic10", tmp_path)
    photo_sets.save(train / "frog" / "cifar10-train-19.png", picture(0))
    assert "frog holds no image of this set" in refused("cinic10", tmp_path)


def test_one_class_only(tmp_path: Path) -> None:
    train = photo_sets.make_cinic10(tmp_path) / "train"
    for folder in list(train.iterdir()):
        if folder.name != "ship":
            shutil.rmtree(folder)
    assert "has no folder for 9 of 10 classes" in refused("cinic10", tmp_path)
    celeba = photo_sets.make_celeba(tmp_path)
    table = celeba / "list_attr_celeba.txt"
    table.write_text(re.sub(r" 1(?= |\n)", "-1", table.read_text()))
    assert "gives no image to 1 of 2 classes: Male" in refused("celeba-20", tmp_path)
    ham = photo_sets.make_ham10000(tmp_path)
    keep = [line for line in (ham / "HAM10000_metadata.csv").read_text().splitlines() if ",nv," in line or "dx" in line]
    (ham / "HAM10000_metadata.csv").write_text("\n".join(keep))
    assert "gives no image to 6 of 7 classes: akiec, " in refused("ham10000", tmp_path)


@pytest.fixture
def imagenet_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ImageNet of twenty classes."""
    monkeypatch.setattr(imagenet, "NB_CLASSES", 20)
    folder = photo_sets.make_imagenet(tmp_path, 1, 20)
    assert load_dataset("imagenet", root=tmp_path, size=16).nb_classes == 20
    return folder


def test_imagenet_has_all_classes_in_both_parts(
    imagenet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = sorted((imagenet_folder / "val").iterdir())[7]
    shutil.rmtree(gone)
    assert f"val has no folder for 1 of 20 classes: {gone.name}" in refused("imagenet", tmp_path)
    shutil.rmtree(imagenet_folder / "val")
    assert "imagenet has no val;" in refused("imagenet", tmp_path)
    (imagenet_folder / "val").mkdir()
    shutil.rmtree(imagenet_folder / "train" / gone.name)
    assert "train has 19 folders named like a class (n01440764), expected 20" in refused("imagenet", tmp_path)
    monkeypatch.undo()
    assert "train has 19 folders named like a class (n01440764), expected 1000" in refused("imagenet", tmp_path)


def test_validation_images_that_were_not_sorted(imagenet_folder: Path, tmp_path: Path) -> None:
    val = imagenet_folder / "val"
    for folder in list(val.iterdir()):
        for image in folder.iterdir():
            image.rename(val / image.name)
        folder.rmdir()
    message = refused("imagenet", tmp_path)
    assert "val has no folder for 20 of 20 classes" in message
    assert "torchvision.datasets.ImageNet" in message


@pytest.mark.parametrize("name", ["lfw", "vggface2"])
def test_faces_without_people(tmp_path: Path, name: str) -> None:
    folder = {"lfw": photo_sets.make_lfw, "vggface2": photo_sets.make_vggface2}[name](tmp_path)
    people = sorted(path for path in folder.iterdir() if path.is_dir())
    (folder / "zz").mkdir()
    assert f"{folder / 'zz'} holds no image" in refused(name, tmp_path)
    for path in (*people[1:], folder / "zz"):
        shutil.rmtree(path)
    assert "1 of 1 people have 20 images or more, two are needed" in refused(name, tmp_path)
    shutil.rmtree(people[0])
    assert "has no folders, one for each person" in refused(name, tmp_path)


# ---------------------------------------------------------------------- label files
@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (
            1,
            lambda text: text.replace("ClassId", "Class"),
            r"line 1: the heading has no column 'ClassId'",
        ),
        (
            5,
            lambda text: text.replace(";1\n", ";43\n"),
            r"line 5: unknown class '00043'; known are 00000",
        ),
        (5, lambda text: text.replace(";1\n", ";left\n"), r"line 5: unknown class '0left'"),
        (5, lambda text: text.replace(";1\n", "\n"), r"line 5: expected 8 fields"),
        (5, lambda text: text.replace(";1\n", ";1;2\n"), r"line 5: expected 8 fields"),
        (5, lambda text: text.replace("00003.ppm", "99999.ppm"), r"99999\.ppm cannot be read: No such file"),
    ],
)
def test_label_file_of_gtsrb(tmp_path: Path, line: int, change: Callable[[str], str], message: str) -> None:
    table = photo_sets.make_gtsrb(tmp_path, tracks=2) / "GT-final_test.csv"
    before = table.read_text()
    edit(table, line, change)
    assert table.read_text() != before
    assert re.search(message, refused("gtsrb", tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: the heading has no column 'Filename' and no 'ClassId'"),
        (b"Filename;ClassId\n", "has no rows"),
        (b"Filename;ClassId\n\xff\xfe;1\n", "cannot be read as a table"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read as a table"),
        (b"Filename,ClassId\n00000.ppm,1\n", "line 1: the heading has no column"),
    ],
)
def test_no_label_file(tmp_path: Path, content: bytes, message: str) -> None:
    table = photo_sets.make_gtsrb(tmp_path, tracks=2) / "GT-final_test.csv"
    table.write_bytes(content)
    assert f"{table}" in refused("gtsrb", tmp_path)
    assert message in refused("gtsrb", tmp_path)


def test_images_of_gtsrb_that_the_classes_own_lists_promise(tmp_path: Path) -> None:
    folder = photo_sets.make_gtsrb(tmp_path) / "GTSRB" / "Final_Training" / "Images" / "00007"
    (folder / "00002_00001.ppm").unlink()
    assert f"there is no image 00002_00001.ppm in {folder} (cut off?)" in refused("gtsrb", tmp_path)


def test_names_that_are_not_gtsrb(tmp_path: Path) -> None:
    folder = photo_sets.make_gtsrb(tmp_path, tracks=2) / "GTSRB" / "Final_Training" / "Images"
    photo_sets.save(folder / "00007" / "stop.ppm", picture(0))
    assert "stop.ppm is not named like an image of GTSRB, track_frame.ppm" in refused("gtsrb", tmp_path)
    (folder / "00007" / "stop.ppm").unlink()
    (folder / "00043").mkdir()
    assert "has a folder '00043', which is no class; classes are 00000, 00001, 00002, ..., 00042" in refused(
        "gtsrb", tmp_path
    )


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (1, lambda text: text.replace("lesion_id", "lesion"), "line 1: the heading has no column 'lesion_id'"),
        (3, lambda text: text.replace(",akiec,", ",naevus,"), "line 3: unknown class 'naevus'; known are akiec, bcc, "),
        (
            3,
            lambda text: text.replace("ISIC_0024307", "ISIC_9"),
            r"line 3: there is no image ISIC_9\.jpg in .*_1 or ",
        ),
        (3, lambda text: text.split(",akiec")[0] + "\n", "line 3: expected 7 fields"),
    ],
)
def test_label_file_of_ham10000(tmp_path: Path, line: int, change: Callable[[str], str], message: str) -> None:
    table = photo_sets.make_ham10000(tmp_path) / "HAM10000_metadata.csv"
    edit(table, line, change)
    assert re.search(rf"{re.escape(str(table))}, {message}", refused("ham10000", tmp_path))


def test_label_files_of_isic2018(tmp_path: Path) -> None:
    folder = photo_sets.make_isic2018(tmp_path)
    table = next(folder.glob("*Training*/*.csv"))
    original = table.read_text()
    for change in (
        lambda text: text.replace("1.0", "0.0"),
        lambda text: text.replace("0.0", "1.0", 1),
        lambda text: text.replace("1.0", "0.9"),
    ):
        edit(table, 4, change)
        assert f"{table}, line 4: one of AKIEC, BCC, " in refused("isic2018", tmp_path)
        table.write_text(original)
    edit(table, 4, lambda text: text.replace("1.0", "yes"))
    assert f"{table}, line 4: could not convert string to float: 'yes'" in refused("isic2018", tmp_path)
    table.write_text(original)
    groupings = folder / "ISIC2018_Task3_Training_LesionGroupings.csv"
    keep_lines(groupings, 3)
    assert f"{table}, line 4: the lesion groupings do not know the image 'ISIC_0024308'" in refused(
        "isic2018", tmp_path
    )


def test_label_files_of_bcn20000(tmp_path: Path) -> None:
    table = photo_sets.make_bcn20000(tmp_path) / "bcn_20k_train.csv"
    edit(table, 6, lambda text: text.replace(",BKL,", ",OTHER,"))
    assert f"{table}, line 6: unknown class 'other'; known are ak, " in refused("bcn20000", tmp_path)
    shutil.rmtree(table.parent)
    metadata = photo_sets.make_isic2019(tmp_path) / "ISIC_2019_Training_Metadata.csv"
    keep_lines(metadata, 30)
    assert "line 31: ISIC_2019_Training_Metadata.csv does not know the image 'ISIC_0000029'" in refused(
        "bcn20000", tmp_path
    )


@pytest.mark.parametrize(
    ("file", "line", "change", "message"),
    [
        ("attr", 1, lambda text: "71\n", "promises 71 images in line 1 and lists 70"),
        ("attr", 1, lambda text: "many\n", "line 2: expected the number of images in line 1"),
        ("attr", 2, lambda text: text.replace("Male", "Female"), "line 2: .* attributes with 'Male' in line 2"),
        ("attr", 9, lambda text: text.replace("-1", "", 1), "line 9: expected a file name and 40 values 1 or -1"),
        ("attr", 9, lambda text: text.replace("1", "0"), "line 9: expected a file name and 40 values 1 or -1"),
        ("attr", 12, lambda text: "", "promises 70 images in line 1 and lists 69"),
        (
            "eval",
            4,
            lambda text: text.replace(" 0", " 3"),
            "line 4: expected .* 0, 1 or 2, got '000004.jpg 3'",
        ),
        (
            "eval",
            4,
            lambda text: text.split()[0] + "\n",
            "line 4: expected .* 0, 1 or 2, got '000004.jpg'",
        ),
        (
            "eval",
            4,
            lambda text: text.replace("000004", "4"),
            r"line 4: list_attr_celeba\.txt .* '4\.jpg'",
        ),
    ],
)
def test_label_files_of_celeba(
    tmp_path: Path, file: str, line: int, change: Callable[[str], str], message: str
) -> None:
    folder = photo_sets.make_celeba(tmp_path)
    table = folder / ("list_attr_celeba.txt" if file == "attr" else "list_eval_partition.txt")
    edit(table, line, change)
    found = refused("celeba-20", tmp_path, substitute="own")
    assert str(table) in found
    assert re.search(message, found)


@pytest.mark.parametrize(
    ("name", "file", "lines", "message"),
    [
        ("gtsrb", "gtsrb/GT-final_test.csv", 50, "lists 49 images, .*Final_Test/Images has 86"),
        ("ham10000", "ham10000/HAM10000_metadata.csv", 100, "lists 99 images, .*part_1 and .*part_2 has 140"),
        (
            "isic2018",
            "isic2018/ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv",
            20,
            "lists 19 .* 28",
        ),
        ("bcn20000", "bcn20000/bcn_20k_train.csv", 100, "lists 99 images, .*bcn_20k_train has 160"),
        ("celeba-20", "celeba/list_eval_partition.txt", 69, "lists 69 images, .*list_attr_celeba.txt has 70"),
    ],
)
def test_label_files_that_are_cut_off_between_lines(
    tmp_path: Path, name: str, file: str, lines: int, message: str
) -> None:
    photo_sets.MAKERS[name][0](tmp_path)
    keep_lines(tmp_path / file, lines)
    found = refused(name, tmp_path, substitute="own")
    assert str(tmp_path / file) in found
    assert re.search(message, found)


def test_label_file_of_isic2019_that_is_cut_off(tmp_path: Path) -> None:
    keep_lines(photo_sets.make_isic2019(tmp_path) / "ISIC_2019_Training_GroundTruth.csv", 40)
    assert re.search(r"GroundTruth\.csv lists 39 images, .*Input has 72", refused("bcn20000", tmp_path))


@pytest.mark.parametrize("content", [b"", b"70\n", b"\xff\xff\n"])
@pytest.mark.parametrize("file", ["list_attr_celeba.txt", "list_eval_partition.txt"])
def test_no_label_files_of_celeba(tmp_path: Path, file: str, content: bytes) -> None:
    (photo_sets.make_celeba(tmp_path) / file).write_bytes(content)
    assert file in refused("celeba-31", tmp_path, substitute="own")


# ---------------------------------------------------------------------- images
@pytest.mark.parametrize("lazy", [True, False])
def test_empty_and_missing_images_are_found_when_the_set_is_loaded(tmp_path: Path, lazy: bool) -> None:
    image = photo_sets.make_celeba(tmp_path) / "img_align_celeba" / "000007.jpg"
    image.write_bytes(b"")
    assert f"{image} is empty" in refused("celeba-20", tmp_path, substitute="own", lazy=lazy)
    image.unlink()
    assert f"{image} cannot be read" in refused("celeba-20", tmp_path, substitute="own", lazy=lazy)


def test_damaged_images_are_named(tmp_path: Path) -> None:
    image = photo_sets.make_celeba(tmp_path) / "img_align_celeba" / "000007.jpg"
    image.write_bytes(image.read_bytes()[:400])
    assert f"{image} cannot be read as an image" in refused("celeba-20", tmp_path, substitute="own")
    data = load_dataset("celeba-20", root=tmp_path, substitute="own", lazy=True)
    with pytest.raises(DatasetError, match=r"000007\.jpg cannot be read as an image"):
        np.asarray(data.x_train), np.asarray(data.x_apart)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_images_of_other_sizes_and_modes_are_converted(tmp_path: Path, mode: str) -> None:
    folder = photo_sets.make_cinic10(tmp_path) / "train" / "ship"
    for path in folder.glob("n0*.png"):
        picture(5, 100, 41).convert(mode).save(path)
    data = load_dataset("cinic10", root=tmp_path, size=16)
    ships = data.x_train[data.y_train == cifar.CLASSES.index("ship")]
    assert ships.shape == (3, 3, 16, 16)
    if mode in ("L", "1"):
        np.testing.assert_array_equal(ships[:, 0], ships[:, 2])
