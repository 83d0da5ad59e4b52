"""The paper's data sets from tiny files in their real formats: parts, splits, substitutes, options."""

from __future__ import annotations

import csv
import hashlib
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image
from torchvision import transforms

from art_fingerprint.core.digests import array_digest
from art_fingerprint.exceptions import DatasetError, InvalidInputError
from art_fingerprint.zoo import cifar, image_sets, skin_lesions
from art_fingerprint.zoo.dataset import halves, split_by_class, split_by_group
from art_fingerprint.zoo.datasets import DATASETS, Dataset, load_dataset
from art_fingerprint.zoo.image_sets import IMAGE_SETS
from art_fingerprint.zoo.lazy_images import LazyImages
from art_fingerprint.zoo.skin_lesions import BCN_CLASSES, CLASSES
from tests import photo_sets

SIZE = 16
PARTS = ("train", "apart", "test")
# images in training, held-apart and test part of what tests/photo_sets.py writes
COUNTS = {
    "cifar10": (100, 30, 20),
    "cinic10": (30, 30, 30),
    "gtsrb": (879, 153, 86),
    "ham10000": (112, 160, 28),
    "isic2018": (140, 160, 28),
    "bcn20000": (112, 19, 29),
    "celeba-20": (40, 77, 20),
    "celeba-31": (40, 100, 20),
    "lfw": (50, 8, 14),
    "vggface2": (68, 12, 20),
    "imagenet": (2000, 0, 1000),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all data sets; nothing in it is changed."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        photo_sets.make_cifar10(folder, patch)
        for maker in dict.fromkeys(maker for makers in photo_sets.MAKERS.values() for maker in makers):
            maker(folder)
        yield folder


def load(name: str, root: Path, **options: Any) -> Dataset:
    return load_dataset(name, root=root, **{"size": SIZE, **options})


def files(data: Dataset, part: str) -> list[Path]:
    images: Any = getattr(data, f"x_{part}")
    assert isinstance(images, LazyImages)
    return [Path(path) for path in images.files]


def keys(x: np.ndarray) -> list[str]:
    return [array_digest(image) for image in x]


# ---------------------------------------------------------------------- all of them
@pytest.mark.parametrize("name", IMAGE_SETS)
def test_parts_are_arrays_of_the_stated_kind(root: Path, name: str) -> None:
    data = load(name, root)
    assert data.name == name
    assert tuple(len(getattr(data, f"x_{part}")) for part in PARTS) == COUNTS[name]
    assert data.input_shape == (3, SIZE, SIZE)
    assert data.hflip is (name != "gtsrb")
    for part in PARTS:
        x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
        assert isinstance(x, np.ndarray)
        assert x.dtype == np.float32
        assert y.dtype == np.int64
        assert y.shape == (len(x),)
        if len(x):
            assert x.min() >= 0
            assert 0.5 < x.max() <= 1
    for y in (data.y_train, data.y_test):
        assert set(y.tolist()) == set(range(data.nb_classes))


@pytest.mark.parametrize("name", [name for name in IMAGE_SETS if name != "imagenet"])
def test_no_image_is_in_two_parts(root: Path, name: str) -> None:
    data = load(name, root)
    parts = [set(keys(getattr(data, f"x_{part}"))) for part in PARTS]
    assert [len(part) for part in parts] == list(COUNTS[name])
    assert len(set().union(*parts)) == sum(COUNTS[name])


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_lazy_parts_hold_the_same_images_and_decode_none_before(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = load(name, root, max_samples=30, lazy=False)
    with monkeypatch.context() as patch:
        patch.setattr(LazyImages, "_open", lambda *_: pytest.fail("an image was decoded"))
        data = load(name, root, max_samples=30, lazy=True)
        assert isinstance(data.x_train, LazyImages)
        assert len(data.digest) == 64
        assert data.input_shape == (3, SIZE, SIZE)
    for part in PARTS:
        np.testing.assert_array_equal(np.asarray(getattr(data, f"x_{part}")), getattr(held, f"x_{part}"))
        np.testing.assert_array_equal(getattr(data, f"y_{part}"), getattr(held, f"y_{part}"))


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("cifar10", ["cifar-10-batches-py", "cinic10"]),
        ("ham10000", ["ham10000", "bcn20000"]),
        ("celeba-31", ["celeba", "vggface2"]),
    ],
)
def test_a_data_set_never_changes(root: Path, name: str, folders: list[str], lazy: bool, tmp_path: Path) -> None:
    first = load(name, root, lazy=lazy).digest
    for folder in folders:
        shutil.copytree(root / folder, tmp_path / folder)
    assert load(name, tmp_path, lazy=lazy).digest == first  # wherever it is
    assert load(name, root, lazy=lazy, max_samples=10).digest != first
    assert load(name, root, lazy=lazy, size=SIZE + 1).digest != first


def test_splits_stay_as_they_are(root: Path) -> None:
    """Results rest on these splits: a change of the drawing would show here."""
    found = {}
    for name in IMAGE_SETS:
        digest = hashlib.sha256()
        data = load(name, root, lazy=True)
        for part in PARTS:
            digest.update(getattr(data, f"y_{part}").tobytes())
            digest.update("".join(path.name for path in files(data, part)).encode())
        found[name] = digest.hexdigest()[:12]
    assert found == PINNED


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_large_sets_are_lazy_by_themselves(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sets, "IN_MEMORY_BYTES", 12 * SIZE**2 * max(COUNTS[name]))
    assert isinstance(load(name, root).x_train, np.ndarray)
    monkeypatch.setattr(image_sets, "IN_MEMORY_BYTES", 12 * SIZE**2 * max(COUNTS[name]) - 1)
    data = load(name, root)
    lazy = [isinstance(getattr(data, f"x_{part}"), LazyImages) for part in PARTS]
    assert lazy == [count == max(COUNTS[name]) for count in COUNTS[name]]


@pytest.mark.parametrize(("name", "size"), [("cifar10", 32), ("gtsrb", 32), ("ham10000", 32), ("imagenet", 224)])
def test_the_default_size(root: Path, name: str, size: int) -> None:
    data = load_dataset(name, root=root, lazy=True)
    assert data.input_shape == (3, size, size)
    assert data.x_train[0].shape == (3, size, size)


def test_the_variable_names_the_folder(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ART_FINGERPRINT_DATA", str(root))
    assert load_dataset("gtsrb", size=SIZE).digest == load("gtsrb", root).digest
    monkeypatch.setenv("ART_FINGERPRINT_DATA", str(tmp_path))
    assert load("gtsrb", root).nb_classes == 43  # `root` comes first
    monkeypatch.setenv("HOME", str(root.parent))
    assert load_dataset("gtsrb", root=f"~/{root.name}", size=SIZE).nb_classes == 43


@pytest.mark.parametrize("name", ["cifar10", "cinic10", "gtsrb", "lfw", "imagenet"])
def test_the_first_images_are_a_fair_sample(root: Path, name: str) -> None:
    data = load(name, root, lazy=True)
    for part in PARTS:
        y = getattr(data, f"y_{part}")
        for n in (10, 50):
            if n < len(y):
                shares = np.bincount(y, minlength=data.nb_classes) * n / len(y)
                assert np.abs(np.bincount(y[:n], minlength=data.nb_classes) - shares).max() < 2
                assert len(set(y[:n].tolist())) >= min(n, data.nb_classes) * 0.6


# ---------------------------------------------------------------------- against other readers
@pytest.fixture
def file_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave images in the order of the files, which other readers have."""
    monkeypatch.setattr(image_sets, "stratified_order", lambda y, *_: np.arange(len(y)))


@pytest.mark.usefixtures("file_order")
def test_cifar10_is_what_torchvision_reads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "_check_integrity", lambda _self: True)
    monkeypatch.setattr(kind, "_load_meta", lambda _self: None)
    data = load("cifar10", root, size=32)
    for train, x, y in ((True, data.x_train, data.y_train), (False, data.x_test, data.y_test)):
        theirs = kind(str(root), train=train)
        np.testing.assert_allclose(x, theirs.data.transpose(0, 3, 1, 2) / 255, atol=1e-7)
        assert y.tolist() == theirs.targets
    assert {name: digest for name, digest in kind.train_list + kind.test_list} == PUBLISHED_BATCHES


def fitted(image: Image.Image, size: int = SIZE) -> np.ndarray:
    fit = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()])
    return fit(image).numpy()


@pytest.mark.parametrize(
    ("name", "lazy", "most"),
    [
        *(("gtsrb", False, None), ("gtsrb", True, None), ("gtsrb", True, 60), ("ham10000", False, None)),
        *(("isic2018", False, None), ("bcn20000", False, 30)),
    ],
)
def test_halves_have_no_sign_and_no_lesion_in_common(
    name: str, lazy: bool, most: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of one sign are nearly one image: whoever was trained on the other half would have seen the victim's."""
    photo_sets.make(name, tmp_path, monkeypatch)
    data = load(name, tmp_path, lazy=lazy, max_samples=most, substitute="none")
    assert data.groups is not None
    assert len(set(data.groups)) < len(data.groups)
    assert len(data.groups) == len(data.y_train)
    own, other = halves(data)
    assert own.groups is not None
    assert other.groups is not None
    assert set(own.groups).isdisjoint(other.groups)
    assert {*own.groups, *other.groups} == set(data.groups)
    assert len(own.x_train) == len(own.y_train) == len(own.groups)
    assert len(own.y_train) + len(other.y_train) == len(data.y_train)
    for part in (own, other):
        where = [list(data.groups).index(group) for group in dict.fromkeys(part.groups)]
        assert {group: data.y_train[i] for group, i in zip(dict.fromkeys(part.groups), where, strict=True)} == dict(
            zip(part.groups, part.y_train, strict=True)
        )
    with pytest.raises(InvalidInputError, match="all of one group, cannot be halved"):
        halves(replace(data, groups=np.repeat("one", len(data.y_train))))


@pytest.mark.parametrize(("name", "lazy"), [("gtsrb", False), ("gtsrb", True)])
def test_groups_are_those_of_the_files(name: str, lazy: bool, root: Path) -> None:
    """Also where some are left out, and in the order in which the images are."""
    data = load(name, root, lazy=True, max_samples=60)
    tracks = [(path.parent.name, path.name.split("_")[0]) for path in files(data, "train")]
    held = load(name, root, lazy=lazy, max_samples=60)
    assert held.groups is not None
    assert len(set(zip(tracks, held.groups, strict=True))) == len(set(tracks)) == len(set(held.groups))
    own = halves(data)[0]
    assert own.groups is not None
    names = dict(zip(tracks, held.groups, strict=True))
    assert [names[path.parent.name, path.name.split("_")[0]] for path in files(own, "train")] == own.groups.tolist()


def test_sets_without_groups_are_halved_image_by_image() -> None:
    data = load_dataset("digits")
    assert data.groups is None
    parts = split_by_class(data.y_train, (500, 500), 0, "halves", "digits")
    for half, part in zip(halves(data), parts, strict=True):
        assert half.groups is None
        assert (half.x_train == data.x_train[part]).all()
    assert replace(data, groups=np.arange(1000) // 2).digest == data.digest


@pytest.mark.usefixtures("file_order")
def test_gtsrb_is_what_torchvision_reads(tmp_path: Path) -> None:
    photo_sets.make_gtsrb(tmp_path, tracks=2, layout="Training")
    data = load("gtsrb", tmp_path, substitute="none")
    for split, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        theirs = torchvision.datasets.GTSRB(str(tmp_path), split)
        assert len(theirs) == len(x)
        for k in range(0, len(x), 7):
            image, label = theirs[k]
            np.testing.assert_allclose(x[k], fitted(image), atol=1e-7)
            assert y[k] == label


def test_gtsrb_as_kaggle_lays_it_out(root: Path, tmp_path: Path) -> None:
    plain = load("gtsrb", root, substitute="none", lazy=True)
    heading = ["Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId", "Path"]
    for part, table in (("train", "Train"), ("test", "Test")):
        rows: list[list[object]] = [heading]
        for path, label in zip(files(plain, part), getattr(plain, f"y_{part}"), strict=True):
            inside = f"{label}/{label:05d}_{path.stem}.png" if part == "train" else f"{path.stem}.png"
            target = tmp_path / "gtsrb" / table / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                image.save(target)
            rows.append([*range(6), label, f"{table}/{inside}"])
        photo_sets.table(tmp_path / "gtsrb" / f"{table}.csv", rows)
    found, plain = (load("gtsrb", place, substitute="none") for place in (tmp_path, root))
    for part in ("train", "test"):
        pairs = [zip(keys(getattr(d, f"x_{part}")), getattr(d, f"y_{part}"), strict=True) for d in (found, plain)]
        assert sorted(pairs[0]) == sorted(pairs[1])
    apart = load("gtsrb", tmp_path, lazy=True)
    tracks = [{path.stem.rpartition("_")[0] for path in files(apart, part)} for part in ("train", "apart")]
    assert tracks[1]
    assert not tracks[0] & tracks[1]
    target.unlink()
    with pytest.raises(DatasetError, match=r"Test\.csv lists 86 images, .*Test has 85"):
        load("gtsrb", tmp_path)


@pytest.mark.usefixtures("file_order")
@pytest.mark.parametrize(("attribute", "name"), [(20, "Male"), (31, "Smiling")])
def test_celeba_is_what_torchvision_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attribute: int, name: str
) -> None:
    folder = photo_sets.make_celeba(tmp_path)
    names = [f"{k:06d}.jpg" for k in range(1, 71)]
    (folder / "identity_CelebA.txt").write_text("\n".join(f"{file} 7" for file in names))
    for other in ("list_bbox_celeba.txt", "list_landmarks_align_celeba.txt"):
        (folder / other).write_text("70\na b\n" + "\n".join(f"{file} 1 2" for file in names))
    kind = torchvision.datasets.CelebA
    monkeypatch.setattr(kind, "_check_integrity", lambda _self: True)
    data = load(f"celeba-{attribute}", tmp_path, substitute="none")
    for split, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        theirs = kind(str(tmp_path), split)
        assert theirs.attr_names[attribute] == name
        assert theirs.attr[:, attribute].tolist() == y.tolist()
        for k in range(0, len(x), 5):
            np.testing.assert_allclose(x[k], fitted(theirs[k][0]), atol=1e-7)


@pytest.mark.usefixtures("file_order")
def test_imagenet_is_what_torchvision_reads(root: Path) -> None:
    data = load("imagenet", root, lazy=True)
    assert data.nb_classes == 1000
    assert data.x_apart.shape == (0, 3, SIZE, SIZE)
    fit = transforms.Compose([transforms.Resize(18), transforms.CenterCrop(SIZE), transforms.ToTensor()])  # 16 / 0.875
    for part, folder in (("train", "train"), ("test", "val")):
        theirs = torchvision.datasets.ImageFolder(str(root / "imagenet" / folder), fit)
        assert theirs.targets == getattr(data, f"y_{part}").tolist()
        assert [path for path, _ in theirs.samples] == [str(path) for path in files(data, part)]
        for k in range(0, len(theirs), 301):
            np.testing.assert_allclose(getattr(data, f"x_{part}")[k], theirs[k][0].numpy(), atol=1e-7)


def test_ham10000_labels_and_lesions(root: Path) -> None:
    data = load("ham10000", root, lazy=True)
    with open(root / "ham10000" / "HAM10000_metadata.csv", newline="") as file:
        rows = {row["image_id"]: row for row in csv.DictReader(file)}
    lesions: list[set[str]] = []
    for part in ("train", "test"):
        names = [path.stem for path in files(data, part)]
        assert [CLASSES[label] for label in getattr(data, f"y_{part}")] == [rows[name]["dx"] for name in names]
        lesions.append({rows[name]["lesion_id"] for name in names})
    assert not lesions[0] & lesions[1]
    assert len(lesions[0] | lesions[1]) == 70
    assert np.bincount(data.y_test).tolist() == [4] * 7  # two lesions of ten


@pytest.mark.parametrize("name", ["HAM10000_metadata.tab", "HAM10000_metadata"])
def test_ham10000_as_the_repository_names_it(root: Path, tmp_path: Path, name: str) -> None:
    photo_sets.make_ham10000(tmp_path, name=name)
    for part in (1, 2):
        folder = tmp_path / "ham10000" / f"HAM10000_images_part_{part}"
        folder.rename(folder.with_name(f"ham10000_images_part_{part}"))
    ours = load("ham10000", tmp_path, substitute="none")
    assert array_digest(ours.x_train) == array_digest(load("ham10000", root).x_train)


@pytest.mark.parametrize("name", ["HAM10000_images", "images"])
def test_ham10000_with_its_parts_in_one_folder(root: Path, tmp_path: Path, name: str) -> None:
    first, second = (photo_sets.make_ham10000(tmp_path) / f"HAM10000_images_part_{part}" for part in (1, 2))
    merged = first.rename(first.with_name(name))
    for file in second.iterdir():
        file.rename(merged / file.name)
    second.rmdir()
    ours = load("ham10000", tmp_path, substitute="none")
    assert array_digest(ours.x_train) == array_digest(load("ham10000", root).x_train)


def test_isic2018_is_ham10000_with_its_own_test_set(root: Path) -> None:
    ham, isic = load("ham10000", root, lazy=True), load("isic2018", root, lazy=True, substitute="own")
    names = {path.stem for part in ("train", "apart") for path in files(isic, part)}
    assert names == {path.stem for part in ("train", "test") for path in files(ham, part)}
    labels = {
        path.stem: label
        for part in PARTS[::2]
        for path, label in zip(files(ham, part), getattr(ham, f"y_{part}"), strict=True)
    }
    assert [labels[path.stem] for path in files(isic, "train")] == isic.y_train.tolist()
    assert {path.parent.name for path in files(isic, "test")} == {"ISIC2018_Task3_Test_Input"}
    # lesions have two images each, with neighbouring numbers
    lesions = [{(int(path.stem[5:]) - 24306) // 2 for path in files(isic, part)} for part in ("train", "apart")]
    assert not lesions[0] & lesions[1]
    assert len(lesions[1]) == 10  # 15 % of 70


def test_bcn20000_parts_share_no_lesion(root: Path) -> None:
    data = load("bcn20000", root, lazy=True)
    numbers = [{int(path.stem[4:]) for path in files(data, part)} for part in PARTS]
    assert len(set().union(*numbers)) == 160
    lesions = [{number // 2 for number in part if number >= 16} for part in numbers]  # the first eight have no name
    assert sum(map(len, lesions)) == len(set().union(*lesions)) == 72
    assert [BCN_CLASSES[label] for label in data.y_train] == [
        BCN_CLASSES[int(path.stem[4:]) // 2 % 8] for path in files(data, "train")
    ]


def test_bcn20000_out_of_isic2019(tmp_path: Path) -> None:
    photo_sets.make_isic2019(tmp_path)
    found = skin_lesions.read_bcn20000(tmp_path)
    numbers = [int(Path(path).stem[5:12]) for path in found.source]
    assert numbers == [number for number in range(45) if number % 9 != 8]  # BCN, and no unknown diagnosis
    order = ["mel", "nv", "bcc", "ak", "bkl", "df", "vasc", "scc"]
    assert [BCN_CLASSES[label] for label in found.labels] == [order[number % 9] for number in numbers]
    found_names = skin_lesions._files([tmp_path / "isic2019" / "ISIC_2019_Training_Input"])
    assert skin_lesions._file(found_names, "ISIC_0000045", "line", [], skin_lesions.BCN20000).endswith(
        "ISIC_0000045_downsampled.jpg"
    )


def test_bcn_labels_are_those_of_the_victim_where_it_has_them(root: Path) -> None:
    data = load("ham10000", root, lazy=True)
    for path, label in zip(files(data, "apart"), data.y_apart, strict=True):
        diagnosis = BCN_CLASSES[int(path.stem[4:]) // 2 % 8]
        wanted = {"scc": -1, "ak": CLASSES.index("akiec")}
        assert label == (wanted[diagnosis] if diagnosis in wanted else CLASSES.index(diagnosis))


@pytest.mark.parametrize(
    "layout",
    [
        *("lfw-py/lfw-deepfunneled", "lfw/lfw-deepfunneled/lfw-deepfunneled", "lfw/lfw", "lfw"),
        *("lfw_funneled", "lfw-funneled/lfw_funneled", "lfw/lfw-funneled/lfw_funneled"),
    ],
)
def test_lfw_is_found(root: Path, tmp_path: Path, layout: str) -> None:
    (tmp_path / layout).parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(root / "lfw-py" / "lfw_funneled", tmp_path / layout, dirs_exist_ok=True)
    assert array_digest(load("lfw", tmp_path).x_train) == array_digest(load("lfw", root).x_train)


def into_itself(folder: Path) -> None:
    """Do what unpackers do with an archive that has a folder of its own name."""
    aside = folder.rename(folder.with_name("aside"))
    folder.mkdir()
    aside.rename(folder / folder.name)


def test_folders_in_folders_of_their_names(root: Path, tmp_path: Path) -> None:
    for folder in (photo_sets.make_ham10000(tmp_path), photo_sets.make_isic2018(tmp_path)):
        for path in [path for path in folder.iterdir() if path.is_dir()]:
            into_itself(path)
    for name in ("ham10000", "isic2018"):
        found, plain = (load(name, place, substitute="none") for place in (tmp_path, root))
        assert array_digest(found.x_train) == array_digest(plain.x_train)
        assert array_digest(found.x_test) == array_digest(plain.x_test)


@pytest.mark.parametrize("there", [True, False])
def test_the_test_image_that_is_not_scored_is_no_part(root: Path, tmp_path: Path, there: bool) -> None:
    folder = photo_sets.make_isic2018(tmp_path)
    name = "ISIC2018_Task3_Test_GroundTruth"
    with open(folder / name / f"{name}.csv", "a") as file:
        file.write("ISIC_0035068,0.0,1.0,0.0,0.0,0.0,0.0,0.0\n")
    if there:
        photo_sets.save(folder / "ISIC2018_Task3_Test_Input" / "ISIC_0035068.jpg", photo_sets.picture(1, 60, 45))
    found, plain = (load("isic2018", place, substitute="none") for place in (tmp_path, root))
    assert array_digest(found.x_test) == array_digest(plain.x_test)


def test_hidden_files_are_no_lesions(root: Path, tmp_path: Path) -> None:
    folder = photo_sets.make_ham10000(tmp_path)
    (folder / "HAM10000_images_part_1" / "._ISIC_0024306.jpg").write_bytes(b"of a file system without attributes")
    found, plain = (load("ham10000", place, substitute="none") for place in (tmp_path, root))
    assert array_digest(found.x_train) == array_digest(plain.x_train)


def test_celeba_as_its_publisher_and_as_kaggle_lay_it_out(root: Path, tmp_path: Path) -> None:
    plain = load("celeba-20", root, substitute="none")
    published = photo_sets.make_celeba(tmp_path / "a")
    for part, file in (
        ("Anno", "list_attr_celeba.txt"),
        ("Eval", "list_eval_partition.txt"),
        ("Img", "img_align_celeba"),
    ):
        (published / part).mkdir()
        (published / file).rename(published / part / file)
    commas = photo_sets.make_celeba(tmp_path / "b")
    into_itself(commas / "img_align_celeba")
    attributes = commas.joinpath("list_attr_celeba.txt").read_text().split("\n")[1:]
    attributes[0] = f"image_id {attributes[0]}"
    partition = ["image_id partition", *commas.joinpath("list_eval_partition.txt").read_text().split("\n")]
    for name, lines in (("list_attr_celeba", attributes), ("list_eval_partition", partition)):
        (commas / f"{name}.csv").write_text("\n".join(",".join(line.split()) for line in lines))
        (commas / f"{name}.txt").unlink()
    for place in ("a", "b"):
        found = load("celeba-20", tmp_path / place, substitute="none")
        assert array_digest(found.x_train) == array_digest(plain.x_train)
        assert found.y_test.tolist() == plain.y_test.tolist()


def test_images_of_a_person_stay_together_where_it_is_known(tmp_path: Path) -> None:
    folder = photo_sets.make_celeba(tmp_path)
    names = [f"{number:06d}.jpg" for number in range(1, 71)]
    people = folder / "identity_CelebA.txt"
    people.write_text("".join(f"{name} {k // 3}\n" for k, name in enumerate(names)))
    found = load("celeba-20", tmp_path, substitute="own", lazy=True)
    groups = [{(int(path.stem) - 1) // 3 for path in files(found, part)} for part in ("train", "apart")]
    assert groups[1]
    assert not groups[0] & groups[1]
    people.write_text("000001.jpg 1\n")
    with pytest.raises(DatasetError, match=r"identity_CelebA\.txt .* does not know all images"):
        load("celeba-20", tmp_path, substitute="own")
    people.write_text("000001.jpg\n")
    with pytest.raises(DatasetError, match=r"identity_CelebA\.txt, line 1: expected a file name and a person"):
        load("celeba-20", tmp_path, substitute="own")


def test_imagenet_as_kaggle_lays_it_out(root: Path, tmp_path: Path) -> None:
    plain = load("imagenet", root, lazy=True)
    inside = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    shutil.copytree(root / "imagenet" / "train", inside / "train")
    (inside / "val").mkdir()
    rows = ["ImageId,PredictionString"]
    for path in sorted((root / "imagenet" / "val").glob("*/*.JPEG"), key=lambda path: path.name, reverse=True):
        shutil.copy(path, inside / "val" / path.name)
        rows.append(f"{path.stem},{path.parent.name} 1 2 3 4 {path.parent.name} 5 6 7 8 ")
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(rows))
    found = load("imagenet", tmp_path, lazy=True)
    labels = {path.name: label for path, label in zip(files(plain, "test"), plain.y_test, strict=True)}
    assert [labels[path.name] for path in files(found, "test")] == found.y_test.tolist()


def test_faces_of_few_people_make_the_classes(root: Path) -> None:
    data = load("lfw", root, lazy=True)
    assert data.nb_classes == 3
    people = {path.parent.name: label for path, label in zip(files(data, "train"), data.y_train, strict=True)}
    assert people == {"Anna_Example": 0, "Cnna_Example": 1, "Fnna_Example": 2}


# ---------------------------------------------------------------------- splits
def test_gtsrb_holds_whole_signs_apart(root: Path) -> None:
    data = load("gtsrb", root, lazy=True)
    signs = [{(path.parent.name, path.name[:5]) for path in files(data, part)} for part in ("train", "apart")]
    assert not signs[0] & signs[1]
    assert len(signs[0] | signs[1]) == 43 * 8
    assert len(signs[1]) == 51  # 15 % of 344
    per_class = np.bincount(data.y_apart, minlength=43) // 3
    assert set(per_class.tolist()) == {1, 2}


@pytest.mark.parametrize("share", [0.0, 0.15, 0.5, 1.0])
def test_groups_stay_together(share: float) -> None:
    generator = np.random.default_rng(0)
    groups = generator.permutation(np.repeat(np.arange(100), generator.integers(1, 6, 100)))
    y = (groups % 4).astype(np.int64)
    first, second = split_by_group(y, groups, share, 0, "test")
    assert sorted([*first, *second]) == list(range(len(y)))
    assert not set(groups[first]) & set(groups[second])
    assert len(set(groups[second])) == share * 100
    assert np.abs(np.bincount(np.unique(groups[second]) % 4, minlength=4) - 25 * share).max() < 2


def test_names_as_groups_split_like_numbers() -> None:
    y, groups = np.repeat(np.arange(5), 8), np.repeat(np.arange(10), 4)
    names = np.array([f"lesion {number}" for number in groups], dtype=object)
    for ours, theirs in zip(split_by_group(y, names, 0.3, 1), split_by_group(y, groups, 0.3, 1), strict=True):
        assert ours.tolist() == theirs.tolist()


# ---------------------------------------------------------------------- substitutes
def test_cinic10_comes_without_cifar10(root: Path) -> None:
    for name, part in (("cifar10", "apart"), ("cinic10", "train"), ("cinic10", "apart"), ("cinic10", "test")):
        data = load(name, root, lazy=name == "cinic10", size=32)
        if name == "cinic10":
            assert all(path.name.startswith("n0") for path in files(data, part))
        assert np.bincount(getattr(data, f"y_{part}")).tolist() == [3] * 10


@pytest.mark.usefixtures("file_order")
@pytest.mark.parametrize("lazy", [True, False])
def test_images_that_the_victim_has_are_left_out(tmp_path: Path, lazy: bool, caplog: pytest.LogCaptureFixture) -> None:
    ham, bcn = photo_sets.make_ham10000(tmp_path), photo_sets.make_bcn20000(tmp_path)
    before = load("ham10000", tmp_path, lazy=lazy)
    theirs = sorted((bcn / "BCN_20k_train" / "bcn_20k_train").iterdir())
    for source, target in zip(sorted((ham / "HAM10000_images_part_1").iterdir())[:9], theirs[20:], strict=False):
        shutil.copy(source, target)
    with caplog.at_level(logging.WARNING):
        data = load("ham10000", tmp_path, lazy=lazy)
    assert len(data.x_apart) == len(data.y_apart) == 151
    assert not set(keys(data.x_apart)) & {*keys(data.x_train), *keys(data.x_test)}
    assert data.y_apart.tolist() == np.delete(before.y_apart, range(20, 29)).tolist()
    assert "9 of 160 substitute images (bcn20000) are also training or test images of HAM10000" in caplog.text


def test_pixels_count_and_not_the_file_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo_sets.make_cifar10(tmp_path, monkeypatch)
    folder = photo_sets.make_cinic10(tmp_path) / "train" / "ship"
    next(folder.glob("cifar10-*")).rename(folder / "n02691156_99.png")
    assert len(load("cifar10", tmp_path, size=32).x_apart) == 30  # not 31


@pytest.mark.parametrize(
    ("name", "substitute", "counts"),
    [
        ("cifar10", "own", (85, 15, 20)),
        ("cifar10", "none", (100, 0, 20)),
        ("ham10000", "own", (96, 16, 28)),
        ("celeba-20", "vggface2", (40, 100, 20)),
        ("celeba-31", "lfw", (40, 77, 20)),
        ("imagenet", "own", (1700, 300, 1000)),
        ("cinic10", "none", (30, 0, 30)),
    ],
)
def test_other_substitutes(root: Path, name: str, substitute: str, counts: tuple[int, int, int]) -> None:
    data = load(name, root, substitute=substitute, lazy=name == "imagenet")
    assert tuple(len(getattr(data, f"x_{part}")) for part in PARTS) == counts
    if substitute == "own":
        assert data.y_apart.min() >= 0
    if substitute in ("lfw", "vggface2"):
        assert set(data.y_apart.tolist()) == {-1}


def test_a_set_alone_needs_no_substitute_s_files(tmp_path: Path, root: Path) -> None:
    shutil.copytree(root / "celeba", tmp_path / "celeba")
    assert load("celeba-20", tmp_path, substitute="own").x_apart.shape == (6, 3, SIZE, SIZE)
    with pytest.raises(DatasetError, match=r"^LFW: .*lfw-py does not exist"):
        load("celeba-20", tmp_path)


def test_vggface2_is_limited_as_a_substitute(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = image_sets.SUBSTITUTES["vggface2"]
    assert kind.limit == 20_000
    limited = image_sets.Substitute(kind.read, kind.aliases, 12)
    monkeypatch.setattr(image_sets, "SUBSTITUTES", {**image_sets.SUBSTITUTES, "vggface2": limited})
    data = load("celeba-31", root, lazy=True)
    people = [path.parent.name for path in files(data, "apart")]
    assert sorted(map(people.count, set(people))) == [3, 3, 3, 3]


# ---------------------------------------------------------------------- options
@pytest.mark.parametrize("name", IMAGE_SETS)
def test_max_samples_keeps_the_class_shares(root: Path, name: str) -> None:
    data, whole = load(name, root, max_samples=20, lazy=True), load(name, root, lazy=True)
    for part in PARTS:
        x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
        all_y = getattr(whole, f"y_{part}")
        assert len(x) == len(y) == min(20, len(all_y))
        if len(y) and name not in ("imagenet", "celeba-20", "celeba-31", "ham10000", "isic2018"):
            shares = np.bincount(all_y, minlength=data.nb_classes) * len(y) / len(all_y)
            assert np.abs(np.bincount(y, minlength=data.nb_classes) - shares).max() < 2
    if name == "imagenet":
        assert len(set(data.y_train.tolist())) == 20


@pytest.mark.parametrize("name", ["digits", "gtsrb"])
def test_max_samples_of_a_set(root: Path, name: str) -> None:
    everything = load_dataset(name, root=root)
    whole = dict(zip(keys(everything.x_train), everything.y_train, strict=True))
    data = load_dataset(name, root=root, max_samples=50)
    assert [len(data.y_train), len(data.y_apart), len(data.y_test)] == [50, 50, 50]
    assert [whole[key] for key in keys(data.x_train)] == data.y_train.tolist()
    assert load_dataset(name, root=root, max_samples=50).digest == data.digest
    assert load_dataset(name, root=root, max_samples=10**6).digest == everything.digest


def test_max_samples_by_part(root: Path) -> None:
    data = load("ham10000", root, max_samples={"apart": 20, "test": 7})
    assert [len(data.y_train), len(data.y_apart), len(data.y_test)] == [112, 20, 7]
    digits = load_dataset("digits", max_samples={"train": 30})
    assert [len(digits.y_train), len(digits.y_apart), len(digits.y_test)] == [30, 437, 360]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gtsrb", {"max_samples": {"val": 5}}, "`part in max_samples` must be one of 'train', 'apart', 'test'"),
        ("gtsrb", {"max_samples": {"test": 0}}, "`max_samples`"),
        ("gtsrb", {"max_samples": 0}, "`max_samples`"),
        ("gtsrb", {"size": 7}, "`size`"),
        ("gtsrb", {"lazy": 1}, "`lazy`"),
        ("gtsrb", {"download": "yes"}, "`download`"),
        ("gtsrb", {"substitute": "tsrd"}, r"`substitute` must be one of 'own', 'none', got 'tsrd'"),
        ("cifar10", {"substitute": "gtsrb"}, r"must be one of 'cinic10', 'own', 'none', got 'gtsrb'"),
        ("digits", {"size": 32}, "'digits' is as it is: size must be left out"),
        ("fashion-mnist", {"lazy": True, "substitute": "own"}, "substitute and lazy must be left out"),
        ("digits", {"max_samples": 2.5}, "`max_samples`"),
        ("celeba", {}, r"no data set 'celeba'; known are bcn20000, celeba-20, celeba-31, "),
    ],
)
def test_bad_options_are_refused(root: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load_dataset(name, root=root, **options)


# ---------------------------------------------------------------------- downloads
@pytest.mark.parametrize("name", sorted({*IMAGE_SETS} - {"cifar10", "gtsrb", "celeba-20", "celeba-31"}))
def test_sets_that_nobody_may_fetch_say_what_to_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        load_dataset(name, root=tmp_path, download=True)
    assert "cannot be downloaded by this package" in str(caught.value)
    assert IMAGE_SETS[name].place.advice in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind", "calls"),
    [
        ("cifar10", "CIFAR10", 1),
        ("gtsrb", "GTSRB", 2),
        ("celeba-20", "CelebA", 1),
        ("fashion-mnist", "FashionMNIST", 1),
    ],
)
def test_torchvision_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, calls: int) -> None:
    asked: list[tuple[Any, ...]] = []

    def refuse(*arguments: Any, download: bool) -> None:
        asked.append((*arguments, download))
        if len(asked) == calls:
            raise RuntimeError("no route to host")

    monkeypatch.setattr(torchvision.datasets, kind, refuse)
    with pytest.raises(DatasetError, match=r"could not be downloaded to .*new: RuntimeError: no route to host"):
        load_dataset(name, root=tmp_path / "new", download=True)
    assert [call[0] for call in asked] == [str(tmp_path / "new")] * calls
    assert all(call[-1] is True for call in asked)
    assert [call[1] for call in asked if len(call) > 2] == (["train", "test"] if name == "gtsrb" else [])
    monkeypatch.delenv("ART_FINGERPRINT_DATA", raising=False)
    with pytest.raises(DatasetError, match="no folder to download to; name one by `root` or .* ART_FINGERPRINT_DATA"):
        load_dataset(name, download=True)


def test_names_are_listed() -> None:
    assert list(DATASETS) == sorted(["digits", "fashion-mnist", *COUNTS])


PUBLISHED_BATCHES = {**cifar.TRAINING_BATCHES, **cifar.TEST_BATCHES}
PINNED = {
    "cifar10": "04cf950de839",
    "cinic10": "0e30dce02e80",
    "gtsrb": "b50b7fccf8f4",
    "ham10000": "10f73c7d5c88",
    "isic2018": "e0483ba8dff7",
    "bcn20000": "e4b014b5dbc3",
    "celeba-20": "8c54e154ce85",
    "celeba-31": "039ed55c0f39",
    "lfw": "3054b2c8ef6c",
    "vggface2": "e8ae791ac35e",
    "imagenet": "826b1d923f1c",
}
