"""`diffkit compress`, `decompress` and `rate`, as a user types them."""

import io
import os
import re
import struct
import sys
from types import SimpleNamespace

import image_kinds
import numpy as np
import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from sources import png

import diffkit as dk
from diffkit.cli import main
from diffkit.configs import make, write_config
from diffkit.data import Digits
from diffkit.runs import assembled, load_run
from diffkit.training.checkpoints import Checkpoints
from diffkit.training.loop import CHECKPOINTS
from diffkit.training.state import init_state
from diffkit_bitsback import commands
from diffkit_bitsback.codec import Codec
from diffkit_bitsback.errors import DamagedFile
from diffkit_bitsback.images import ArrayWriter, _folder, new_file, new_folder, write_images
from diffkit_bitsback.rate import other_codes

SHAPE = (3, 4, 5)
KINDS, KEPT = list(image_kinds.kinds()), list(image_kinds.kept())


def begin(path, *overrides):
    """A run that was not trained: its configuration and its first checkpoint."""
    from diffkit.cli.launch import compose

    state = ConfigStore.get_state()
    small = ("network=mlp", "network.width=8", "network.depth=1", "schedule=linear_logsnr")
    config = compose("train", [*overrides, *small])
    ConfigStore.set_state(state)
    GlobalHydra.instance().clear()
    write_config(path, {key: value for key, value in config.items() if key not in ("run", "root")})
    model = assembled(config).model
    checkpoints = Checkpoints(path / CHECKPOINTS)
    checkpoints.save(7, init_state(model, make(config["train"])), {"seconds": 0.0})
    checkpoints.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs `rgb` (two shades of which `other` is one) and `digits`."""
    path = tmp_path_factory.mktemp("runs")
    images = np.random.default_rng(0).integers(0, 256, (9, *SHAPE), dtype=np.uint8)
    np.save(path / "data.npy", images)
    rgb = ("preset=vdm", "data=array", f"data.path={path / 'data.npy'}", "data.levels=256")
    begin(path / "rgb", *rgb)
    begin(path / "other", *rgb, "train.seed=1")
    begin(path / "digits", "preset=vdm", "data=digits")
    return path


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diffkit"])
    return tmp_path


def does(*words, status=0):
    """Run a command, which ends with this status."""
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, words)])
    assert stopped.value.code == status


def fails(capfd, *words, status=1):
    """The message of a command that fails, without a stack trace."""
    capfd.readouterr()
    does(*words, status=status)
    message = capfd.readouterr().err
    assert "Traceback" not in message
    return message


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)


@pytest.fixture
def folder(workplace):
    """Images of every kind that an RGB model takes, some below another folder."""
    path = workplace / "in"
    (path / "sub dir").mkdir(parents=True)
    Image.fromarray(pixels(0)).save(path / "b.png")
    Image.fromarray(pixels(1)).save(path / "a.bmp")
    Image.fromarray(pixels(2)).save(path / "sub dir" / "ü.PNG")
    Image.fromarray(pixels(3)).save(path / "photo.jpeg", quality=30)
    Image.fromarray(pixels(4)).quantize(7).save(path / "palette.gif")
    Image.fromarray(pixels(5)[:, :, 0]).save(path / "grey.png")
    (path / ".hidden").write_text("is left out")
    (path / ".linked").symlink_to(workplace)
    return path


# --- Round trips


def test_a_folder_comes_back(runs, folder, capfd):
    does("compress", runs / "rgb", "in", "out/coded", "steps=3", "batch_size=4")
    out = capfd.readouterr().out
    size = (folder.parent / "out" / "coded").stat().st_size
    assert f"6 images, {size} bytes, {8 * size / 6 / 60:.4f} bits/dim" in out
    assert "come back as PNG" in out
    does("decompress", runs / "rgb", "out/coded", "back")
    assert everything(folder.parent / "back") == sorted(
        ["a.png", "b.png", "grey.png", "palette.png", "photo.png", "sub dir", "sub dir/ü.PNG"]
    )
    for name in ("a.bmp", "b.png", "sub dir/ü.PNG", "photo.jpeg", "palette.gif", "grey.png"):
        with Image.open(folder / name) as image:
            before = np.asarray(image.convert("RGB"))
        again = name if name.endswith("PNG") else name.rsplit(".", 1)[0] + ".png"
        with Image.open(folder.parent / "back" / again) as image:
            assert image.format == "PNG"
            np.testing.assert_array_equal(np.asarray(image), before)
    assert everything(folder.parent / "out") == ["coded"]


@pytest.mark.slow
def test_a_folder_of_grey_images_comes_back(runs, workplace):
    (workplace / "in").mkdir()
    digits = Digits().test.gather(np.arange(3))
    for number, image in enumerate(digits):
        Image.fromarray(image[0].astype(np.uint8)).save(workplace / "in" / f"{number}.png")
    does("compress", runs / "digits", "in", "coded", "steps=2")
    does("decompress", runs / "digits", "coded", "back")
    for number, image in enumerate(digits):
        with Image.open(workplace / "back" / f"{number}.png") as back:
            assert back.mode == "L"
            np.testing.assert_array_equal(np.asarray(back), image[0])


@pytest.mark.slow
def test_an_array_comes_back(runs, workplace, capfd):
    images = np.random.default_rng(1).integers(0, 256, (7, *SHAPE)).astype(np.int32)
    np.save("given.npy", np.asfortranarray(images))
    settings = ("steps=2", "chunk=3", "verify=true", "grid=rho", "grid.rho=3")
    does("compress", runs / "rgb", "given.npy", "coded", *settings)
    does("decompress", runs / "rgb", "coded", "back.npy")
    back = np.load("back.npy")
    assert back.dtype == np.int32
    np.testing.assert_array_equal(back, images)
    # Nothing is written in place of what exists, unless that is asked for.
    before = (workplace / "coded").read_bytes()
    message = fails(capfd, "compress", runs / "rgb", "given.npy", "coded", "steps=3")
    assert "overwrite=true" in message
    assert (workplace / "coded").read_bytes() == before
    does("compress", runs / "rgb", "given.npy", "coded", "steps=3", "overwrite=true", "count=2")
    assert "overwrite=true" in fails(capfd, "decompress", runs / "rgb", "coded", "back.npy")
    does("decompress", runs / "rgb", "coded", "back.npy", "overwrite=true")
    np.testing.assert_array_equal(np.load("back.npy"), images[:2])
    assert everything(workplace) == ["back.npy", "coded", "given.npy"]


@pytest.mark.slow
def test_a_data_set_comes_back(runs):
    test = Digits().test
    for name, *data in (["own"], ["named", "data=digits"]):
        does("compress", runs / "digits", "test", name, "steps=2", "count=5", *data)
        does("decompress", runs / "digits", name, f"{name}.npy")
        np.testing.assert_array_equal(np.load(f"{name}.npy"), test.gather(np.arange(5)))


@pytest.mark.slow
def test_rate_shows_what_is_coded(runs, capfd, workplace):
    does("rate", runs / "digits", "test", "steps=[1,2]", "count=6", "batch_size=4", "passes=1")
    shown = capfd.readouterr().out
    codec = Codec(load_run(runs / "digits").model, 1, batch_size=4)
    images = Digits().test.gather(np.arange(6))
    for steps in (1, 2):
        statistics = codec.with_steps(steps).encode_stream([images], io.BytesIO())
        assert f"{statistics.net_bits_per_dim:.4f}" in shown
        assert f"{statistics.total_bits_per_dim:.4f}" in shown
    for code, (each, one) in other_codes(images, 17).items():
        assert re.search(rf"{code}\b.*{each:.4f}.*{one:.4f}", shown)
    assert everything(workplace) == []


# --- What is refused, and leaves nothing behind


def spoil(folder, kind):
    rgba = np.zeros((4, 5, 4), np.uint8)
    if kind == "text":
        (folder / "notes.txt").write_text("not an image")
    elif kind == "size":
        Image.fromarray(np.zeros((5, 4, 3), np.uint8)).save(folder / "other.png")
    elif kind == "transparent":
        Image.fromarray(rgba).save(folder / "t.png")
    elif kind == "deep":
        Image.fromarray(np.zeros((4, 5), np.uint16)).save(folder / "deep.png")
    elif kind == "deep_rgb":  # Pillow's mode is RGB
        (folder / "deep.png").write_bytes(png(16, 2))
    elif kind == "animated":
        frames = [Image.fromarray(pixels(i)).quantize(9) for i in range(2)]
        frames[0].save(folder / "m.gif", save_all=True, append_images=frames[1:])
    elif kind == "cut":
        (folder / "cut.png").write_bytes((folder / "b.png").read_bytes()[:-30])
    elif kind == "second":  # of a TIFF file's images begins beyond its end
        file = io.BytesIO()
        Image.fromarray(pixels(0)).save(file, "TIFF")
        damaged = bytearray(file.getvalue())
        (place,) = struct.unpack_from("<I", damaged, 4)
        (entries,) = struct.unpack_from("<H", damaged, place)
        struct.pack_into("<I", damaged, place + 2 + 12 * entries, len(damaged) + 100)
        (folder / "second.tiff").write_bytes(damaged)
    elif kind == "linked":
        (folder / "sub dir" / "linked").symlink_to(folder.parent)
    elif kind == "broken":
        (folder / "broken.png").symlink_to(folder / "no_such.png")
    elif kind == "device":
        Image.fromarray(pixels(0)).save(folder / "sub dir" / "aux.png")
    else:
        Image.fromarray(pixels(0)).save(folder / "b.bmp")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", r"notes.txt' is not an image"),
        ("size", r"other.png' must have 4 x 5 pixels .* got 5 x 4"),
        ("transparent", r"without transparency.* got transparency"),
        ("deep", r"8 bits per channel.* got 16 bits per channel"),
        ("deep_rgb", r"8 bits per channel.* got 16 bits per channel"),
        ("animated", r"must be one RGB image .* got 2 frames"),
        ("cut", r"cut.png' cannot be decoded"),
        ("second", r"second.tiff' is not an image that can be read: \S"),
        ("linked", r"'in/sub dir/linked' is a link to a folder.* give the real folder"),
        ("broken", r"'in/broken.png' is not a file"),
        ("device", r"file name 'sub dir/aux.png' cannot be kept"),
        ("twice", r"'b.bmp' and 'b.png' would both come back as 'b.png'"),
    ],
)
def test_folders_that_would_not_come_back(runs, folder, capfd, kind, message):
    spoil(folder, kind)
    before = everything(folder.parent)
    assert re.search(message, fails(capfd, "compress", runs / "rgb", "in", "coded", "steps=1"))
    assert everything(folder.parent) == before


@pytest.mark.parametrize(("name", "content", "lost"), KINDS, ids=[name for name, *_ in KINDS])
def test_images_that_would_not_come_back(tmp_path, name, content, lost):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}' must be one RGB image .* got (.*, )?{lost}"):
        _folder(tmp_path, (3, 4, 5))


@pytest.mark.parametrize(("name", "content", "pixels"), KEPT, ids=[name for name, *_ in KEPT])
def test_images_that_come_back(tmp_path, name, content, pixels):
    (tmp_path / name).write_bytes(content)
    source = _folder(tmp_path, (3, 4, 5))
    rgb = np.broadcast_to(pixels.reshape(4, 5, -1), (4, 5, 3))
    np.testing.assert_array_equal(source.gather(np.array([0]))[0], rgb.transpose(2, 0, 1))


def test_a_folder_that_cannot_be_read_is_not_left_out(runs, folder, capfd, monkeypatch):
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("sub dir"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", closed)
        message = fails(capfd, "compress", runs / "rgb", "in", "coded", "steps=1")
    assert "Permission denied: 'in/sub dir'" in message
    assert everything(folder.parent).count("coded") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("no_such_run", "test", "coded"), "must be a run directory"),
        (("rgb", "no_such", "coded"), "nothing at 'no_such'.*test or train.*digits"),
        (
            ("rgb", "test", "coded", "data=digits"),
            r"shape \(1, 8, 8\), the model is for \(3, 4, 5\)",
        ),
        (("digits", "data.npy", "coded"), r"\(images, 1, 8, 8\), got uint8 of the shape \(9, 3"),
        (("rgb", "data.npz", "coded"), "data.npz.* is a .npz archive"),
        (("rgb", "text.npy", "coded"), "must be a .npy file of integers"),
        (("rgb", "empty", "coded"), "no files in the folder"),
        (("rgb", "test", "empty"), "'empty' is a folder"),
        (("rgb", "test", "coded", "count=0"), "count must be from 1 to 1, got 0"),
        (("rgb", "test", "coded", "steps=0"), "steps must be from 1"),
        (("rgb", "test", "coded", "grid=no_such"), "no grid 'no_such'"),
        (("rgb", "test", "coded", "grid.rho=3"), r"no option 'grid.rho'. There are: none"),
        (
            ("digits", "test", "coded", "data=digits", "data.x=3"),
            r"no option 'data.x'. There are: d",
        ),
        (("digits", "test", "coded", "data.path=x"), "digits have no option .path.. They have: labels"),
        (("digits", "test", "coded", "data=idx"), r"data=idx needs data.path=\.\.\., the folder"),
        (("rgb", "data.npy", "coded", "data=digits"), "'data.npy' is a path: data= is for test"),
    ],
)
def test_what_compress_refuses(runs, workplace, capfd, words, message):
    (workplace / "empty").mkdir()
    np.save("data.npy", np.load(runs / "data.npy"))
    np.savez("data.npz", np.load(runs / "data.npy"))
    (workplace / "text.npy").write_text("no array")
    before = everything(workplace)
    assert re.search(message, fails(capfd, "compress", runs / words[0], *words[1:]))
    assert everything(workplace) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("RUN",), "INPUT is missing: diffkit compress RUN INPUT OUT"),
        (("RUN", "IN", "OUT", "TOO_MUCH"), "'TOO_MUCH' must be SETTING=VALUE"),
        (
            ("RUN", "IN", "OUT", "stepz=3"),
            "no option 'stepz'. Did you mean 'steps'? There are: run, ",
        ),
        (("RUN", "IN", "OUT", "steps=x"), "steps: Value 'x' of type 'str' could not be converted"),
        (("RUN", "IN", "OUT", "steps=2,3"), "steps=2,3 has several values: give --multirun"),
        (("RUN", "IN", "OUT", "sampler.a=1"), "there is no option 'sampler'"),
        (("RUN", "IN", "OUT", "grid=rh"), "there is no grid 'rh'. Did you mean 'rho'?"),
    ],
)
def test_wrong_usage_is_said_as_for_other_commands(capfd, words, message):
    assert message in fails(capfd, "compress", *words)


@pytest.mark.parametrize(
    "error",
    [
        OverflowError("too large"),
        MemoryError(),
        EOFError("too short"),
        struct.error("too short"),
        SyntaxError("no TIFF"),
    ],
    ids=repr,
)
def test_whatever_goes_wrong_ends_in_a_message(capfd, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(dk, "load_run", fail)
    message = fails(capfd, "rate", "RUN", "test")
    assert message == f"diffkit rate: {str(error) or 'MemoryError'}\n"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    does("rate", "RUN", "test", status=1)
    assert "Traceback" in capfd.readouterr().err


def test_rate_begins_with_what_can_fail(runs, capfd, monkeypatch):
    made = []

    class Counted(Codec):
        def __init__(self, *arguments, **settings):
            made.append(self)
            super().__init__(*arguments, **settings)

    def fail(*arguments):
        raise ImportError("there is no Pillow")

    monkeypatch.setattr(commands, "Codec", Counted)
    monkeypatch.setattr(commands, "other_codes", fail)
    monkeypatch.setattr(commands, "rates", lambda *_, **__: pytest.fail("coding has begun"))
    words = ("rate", runs / "digits", "test", "count=2")
    assert "there is no Pillow" in fails(capfd, *words, "steps=[2,3,4]")
    assert len(made) == 1
    assert "steps must be from 1" in fails(capfd, *words, "steps=[3,0]")
    assert "passes must be at least 1, got 0" in fails(capfd, *words, "passes=0")


def test_help_and_settings(capfd):
    for command in ("compress", "decompress", "rate"):
        does(command, "--help")
        assert f"usage: diffkit {command} RUN INPUT" in (shown := capfd.readouterr().out)
        assert re.search(r"  input=null +\w", shown)
    words = ("compress", "RUN", "IN", "OUT", "steps=50", "count=3", "grid=rho", "grid.rho=7")
    does(*words, "--cfg=job")
    config = yaml.safe_load(capfd.readouterr().out)
    assert (config["run"], config["input"], config["out"]) == ("RUN", "IN", "OUT")
    assert (config["steps"], config["count"], config["grid"]["rho"]) == (50, 3, 7)
    does("rate", "RUN", "test", "steps=[10,50]", "--cfg=job")
    assert yaml.safe_load(capfd.readouterr().out)["steps"] == [10, 50]


def test_an_interrupted_command_leaves_nothing(runs, workplace, monkeypatch):
    def interrupted(*arguments, **options):
        arguments[2].write(b"something")
        raise KeyboardInterrupt

    monkeypatch.setattr(Codec, "encode_stream", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["compress", str(runs / "rgb"), "test", "coded"])
    assert stopped.value.code == 130
    assert everything(workplace) == []


# --- Damaged and hostile files


@pytest.fixture(scope="module")
def coded(runs, tmp_path_factory):
    """A file of six images in three chunks, as `compress` writes it, and one of a folder."""
    path = tmp_path_factory.mktemp("coded")
    words = ["steps=1", "chunk=2", "batch_size=2"]
    with pytest.raises(SystemExit):
        main(["compress", str(runs / "rgb"), str(runs / "data.npy"), str(path / "a"), *words])
    return (path / "a").read_bytes()


def test_damaged_files(runs, workplace, coded, capfd):
    place = coded.index(b"\xc5chunk", coded.index(b"\xc5chunk") + 1) + 90
    damaged = bytearray(coded)
    damaged[place] ^= 4
    for name, content, message in (
        ("flipped", bytes(damaged), "chunk 1 is damaged"),
        ("cut", coded[:-100], "cut short"),
        ("foreign", b"PK\x03\x04 and so on", "not a file that 'diffkit compress'"),
        ("empty", b"", "it is empty"),
    ):
        (workplace / name).write_bytes(content)
        assert message in fails(capfd, "decompress", runs / "rgb", name, "out.npy")
    assert message in fails(capfd, "decompress", runs / "rgb", name, "out.npy", "skip_damaged=true")
    assert everything(workplace) == ["cut", "empty", "flipped", "foreign"]
    message = fails(capfd, "decompress", runs / "rgb", "flipped", "out.npy", "skip_damaged=true")
    assert "images 2 to 3 are missing: chunk 1 is damaged" in message
    np.testing.assert_array_equal(np.load("out.npy"), np.delete(np.load(runs / "data.npy"), (2, 3), axis=0))


def test_another_run_is_refused(runs, workplace, coded, capfd):
    (workplace / "coded").write_bytes(coded)
    message = fails(capfd, "decompress", runs / "other", "coded", "out.npy")
    assert "'step 7'" in message
    assert "other parameters" in message
    assert "(1, 8, 8)" in fails(capfd, "decompress", runs / "digits", "coded", "out.npy")
    assert everything(workplace) == ["coded"]


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "/tmp/evil.png",
        "a/../../evil.png",
        "a\\..\\evil.png",
        "C:evil.png",
        "evil.sh",
        "",
        "a//b.png",
        "./a.png",
        "a\0.png",
        "\x1b[2J.png",
        "\udc80.png",
        "x" * 300 + ".png",
        "d/" * 64 + "a.png",
        "d/" * 1000 + "a.png",
        "CON.png",
        "a/nul.tar.png",
        "Com1/a.png",
        "lpt9 .png",
    ],
    ids=lambda name: ascii(name)[:30],
)
def test_names_that_lead_out_of_the_folder(workplace, name):
    (workplace / "here").mkdir()
    message = re.escape(f"{name!r:.200} cannot be the name of an image in a folder")
    with pytest.raises(DamagedFile, match=message) as refused:
        write_images(workplace / "here", np.zeros((2, *SHAPE), np.uint8), (name, "b.png"))
    assert "\x1b" not in str(refused.value)
    assert everything(workplace) == ["here"]


@pytest.mark.parametrize(
    ("names", "message", "written"),
    [
        (("same.png", "same.png"), "'same.png' stands for two things", ["same.png"]),
        (("a.png", "a.png/b.png"), "'a.png/b.png' stands for two things", ["a.png"]),
        (("a.png/b.png", "a.png"), "'a.png' stands for two things", ["a.png", "a.png/b.png"]),
        ((), "but gives no names", []),
    ],
)
def test_names_that_do_not_fit_together(workplace, names, message, written):
    with pytest.raises(DamagedFile, match=message):
        write_images(workplace, np.zeros((2, *SHAPE), np.uint8), names)
    assert everything(workplace) == written


def test_names_that_are_odd_and_possible(workplace):
    names = ("d/" * 63 + "a.png", "console.png", "com10.png", "é.PNG")
    write_images(workplace, np.zeros((4, *SHAPE), np.uint8), names)
    assert all((workplace / name).is_file() for name in names)


def test_levels_that_no_image_has_are_refused(runs, workplace, capfd, monkeypatch):
    images = np.zeros((2, *SHAPE), np.int32)
    images[1, 0, 0, 0] = 256
    with pytest.raises(DamagedFile, match="values from 0 to 255, got 256"):
        write_images(workplace, images, ("a.png", "b.png"))
    assert everything(workplace) == []
    # A file that says so is refused before anything is decoded.
    (workplace / "coded").touch()
    header = SimpleNamespace(source="folder", levels=257, shape=SHAPE, dtype="int32", images=2)
    decoding = SimpleNamespace(header=header, chunks=lambda **_: pytest.fail("has begun"))
    monkeypatch.setattr(Codec, "open", lambda *_: decoding)
    message = fails(capfd, "decompress", runs / "rgb", "coded", "back")
    assert "at most 256 levels, got 257" in message
    assert everything(workplace) == ["coded"]


@pytest.mark.slow
def test_a_hostile_folder_is_not_written(runs, workplace, capfd):
    (workplace / "here").mkdir()
    codec = Codec(load_run(runs / "rgb").model, 1, batch_size=2)
    with (workplace / "here" / "coded").open("wb") as file:
        codec.encode_stream(
            [np.load(runs / "data.npy")[:2]], file, names=("a.png", "../b.png"), source="folder"
        )
    assert "'../b.png'" in fails(capfd, "decompress", runs / "rgb", "here/coded", "here/out")
    assert everything(workplace) == ["here", "here/coded"]


# --- The pieces


def test_nothing_appears_before_it_is_complete(workplace):
    def half_a_file():
        with new_file(workplace / "a", overwrite=False) as file:
            file.write(b"half")
            assert not (workplace / "a").exists()
            raise RuntimeError("half")

    def half_a_folder():
        with new_folder(workplace / "b") as folder:
            (folder / "half").touch()
            assert not (workplace / "b").exists()
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        half_a_file()
    with pytest.raises(RuntimeError, match="half"):
        half_a_folder()
    assert everything(workplace) == []
    # What came into being meanwhile stays.
    with (
        pytest.raises(FileExistsError, match="there is a file at"),
        new_file(workplace / "a", overwrite=False),
    ):
        (workplace / "a").write_text("another's")
    with (
        pytest.raises(FileExistsError, match="is a folder"),
        new_folder(workplace / "b"),
    ):
        (workplace / "b").mkdir()
    assert (workplace / "a").read_text() == "another's"
    assert everything(workplace) == ["a", "b"]


def test_a_folder_replaces_nothing(workplace):
    (workplace / "a").write_text("another's")
    with (
        pytest.raises(FileExistsError, match=r"'.*a' is a file.* never replaces") as refused,
        new_folder(workplace / "a"),
    ):
        pass
    assert "overwrite" not in str(refused.value)
    assert everything(workplace) == ["a"]


def test_names_as_long_as_the_file_system_takes(workplace):
    name = "本" * 84  # 252 bytes of at most 255
    with new_file(workplace / f"{name}a", overwrite=False) as file:
        file.write(b"all")
    with new_folder(workplace / f"{name}b"):
        pass
    assert everything(workplace) == [f"{name}a", f"{name}b"]


@pytest.mark.parametrize("count", [0, 1, 12, 12345])
def test_an_array_written_in_pieces_is_the_array(count):
    array = np.arange(count * 6, dtype=np.uint16).reshape(count, 2, 3)
    file = io.BytesIO()
    writer = ArrayWriter(file, (2, 3), array.dtype)
    for first in range(0, count, 5000):
        writer.write(array[first : first + 5000])
    writer.close()
    file.seek(0)
    back = np.load(file)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_progress_in_a_log(capfd):
    with commands._Bar("coding", 1000, every=0.0) as bar:
        bar._began -= 10.0
        bar(10.5, None)
        bar(500, 1.2345)
    first, second = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"coding 10/1000  1.0\d images/s  0:15:\d\d left", first)
    assert re.fullmatch(r"coding 500/1000  (50|49\.\d) images/s  1.234 bits/dim  0:00:10 left", second)
