"""The codec: what was encoded comes back bit by bit, or an error says why it does not."""

import dataclasses
import gzip
import io
import itertools
import math
import random
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffkit as dk
from diffkit.data import Digits, read_idx
from diffkit_bitsback.chain import Chain
from diffkit_bitsback.codec import Codec, Header
from diffkit_bitsback.container import Chunk, Reader, Writer
from diffkit_bitsback.errors import (
    CannotEncode,
    CannotReproduce,
    CodecError,
    DamagedFile,
    NotACodecFile,
    WrongModel,
    WrongVersion,
)
from diffkit_bitsback.fingerprints import fingerprint

REAL = Path(__file__).resolve().parents[4] / "shared" / "data"
MLP = ("mlp", {"width": 8, "depth": 1})


def make(name="vdm", shape=(2, 3), levels=5, seed=0, **parts):
    parts = {"network": MLP} | parts
    return dk.preset(name, **parts).model(shape=shape, levels=levels, key=jax.random.key(seed))


def drawn(count, shape=(2, 3), levels=5, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, levels, (count, *shape)).astype(dtype)


def rewritten(data, *, header=None, chunk=None):
    """The same file with other entries in its header, or other chunks, under true checksums."""
    reader = Reader(io.BytesIO(data))
    given = reader.header
    for name, value in (header or {}).items():
        if value is None:
            del given[name]
        else:
            given[name] = value
    file = io.BytesIO()
    writer = Writer(file, given)
    for each in reader.chunks(most=1000):
        writer.write(each if chunk is None else chunk(each))
    writer.close()
    return file.getvalue()


@pytest.fixture(scope="module")
def model():
    return make(schedule="learned_linear")


@pytest.fixture(scope="module")
def codec(model):
    """Ten images in chunks of four, in batches of three, three steps."""
    return Codec(model, 3, batch_size=3, chunk=4, label="step 7")


@pytest.fixture(scope="module")
def images():
    return drawn(10)


@pytest.fixture(scope="module")
def data(codec, images):
    return codec.encode(images)


# --- Round trips


def test_what_was_encoded_comes_back(codec, data, images):
    decoded = codec.decode(data)
    assert decoded.dtype == images.dtype
    np.testing.assert_array_equal(decoded, images)
    assert codec.encode(images) == data


@pytest.mark.parametrize("dtype", ["int8", "int64", ">u2", "uint32"])
def test_the_dtype_comes_back_in_native_order(codec, dtype):
    given = drawn(5, dtype=dtype)
    decoded = codec.decode(codec.encode(given))
    assert decoded.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(decoded, given)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8])
def test_any_number_of_images(codec, count):
    given = drawn(count, seed=count)
    decoded = codec.decode(codec.encode(given))
    assert decoded.shape == (count, 2, 3)
    np.testing.assert_array_equal(decoded, given)


def test_streams_are_coded_a_chunk_at_a_time(codec, data, images):
    told = []
    file = io.BytesIO()
    parts = [images[:1], images[1:7], images[7:7], images[7:]]
    statistics = codec.encode_stream(iter(parts), file, count=10, progress=lambda *now: told.append(now))
    assert file.getvalue() == data
    assert (statistics.images, statistics.dimensions) == (10, 60)
    chunks = list(Reader(io.BytesIO(data)).chunks(most=4))
    assert [(chunk.first, chunk.count) for chunk in chunks] == [(0, 4), (4, 4), (8, 2)]
    assert statistics.total_bits == 32 * sum(chunk.words.size for chunk in chunks)
    # Progress never goes back, and ends at the end, with the rate.
    done = [now[0] for now in told]
    assert done == sorted(done)
    assert told[-1] == (10, statistics.total_bits / 60)
    assert told[0][1] is None

    file.seek(0)
    told.clear()
    streamed = codec.decode_stream(file, progress=lambda *now: told.append(now))
    first = next(streamed)
    np.testing.assert_array_equal(first, images[:4])
    np.testing.assert_array_equal(np.concatenate([first, *streamed]), images)
    assert told[-1] == (10, statistics.total_bits / 60)


def test_an_endless_source_is_read_only_as_far_as_it_is_written(codec):
    # Chunks are written as they fill up: what was written is not kept, and what comes is not read ahead.
    class Enough(Exception):
        pass

    file, read = io.BytesIO(), 0

    def source():
        nonlocal read
        while True:
            if read == 20:
                raise Enough
            read += 1
            yield drawn(1)

    with pytest.raises(Enough):
        codec.encode_stream(source(), file)
    missing = []
    file.seek(0)
    parts = list(codec.decode_stream(file, damaged=lambda *now: missing.append(now)))
    assert sum(map(len, parts)) == 20
    assert [images for images, _ in missing] == [range(20, 20)]
    with pytest.raises(DamagedFile, match="cut short"):
        codec.decode(file.getvalue())


def test_names_are_kept_with_their_images(codec, images):
    names = [f"bild {i} ü.png" for i in range(10)]
    file = io.BytesIO()
    codec.encode_stream([images], file, names=names, source="folder")
    file.seek(0)
    decoding = codec.open(file)
    assert decoding.header.source == "folder"
    assert decoding.header.images is None
    parts = list(decoding.chunks())
    assert [name for part in parts for name in part.names] == names
    assert [part.first for part in parts] == [0, 4, 8]


def test_verify_decodes_before_it_writes(codec, data, images, monkeypatch):
    file = io.BytesIO()
    codec.encode_stream([images], file, count=10, verify=True)
    assert file.getvalue() == data
    decode = Chain.decode
    monkeypatch.setattr(Chain, "decode", lambda *a, **k: decode(*a, **k) ^ 1)
    codec.encode_stream([images], io.BytesIO())
    with pytest.raises(CannotReproduce, match="decode to other images"):
        codec.encode_stream([images], io.BytesIO(), verify=True)


def test_other_steps_share_what_is_compiled(codec, data, images):
    other = codec.with_steps(9, grid="uniform_logsnr")
    written = other.encode(images)
    assert Reader(io.BytesIO(written)).header["steps"] == 9
    assert written != codec.with_steps(9).encode(images)
    assert codec.with_steps(9).with_steps(3).encode(images) == data
    np.testing.assert_array_equal(codec.decode(written), images)
    np.testing.assert_array_equal(other.decode(data), images)
    with pytest.raises(ValueError, match="steps must be from 1 to 65536, got 0"):
        codec.with_steps(0)


@pytest.mark.slow
def test_a_file_says_with_what_settings_it_is_read(model, codec, data, images):
    other = Codec(model, 5, grid=("uniform_logsnr", {}), batch_size=2, first_batch=2, chunk=100, seed=3)
    np.testing.assert_array_equal(other.decode(data), images)
    written = other.encode(images)
    assert written != data
    np.testing.assert_array_equal(codec.decode(written), images)
    header = codec.open(io.BytesIO(written)).header
    assert (header.steps, header.batch_size, header.first_batch, header.chunk) == (5, 2, 2, 100)
    assert header.grid == "uniform_logsnr {}"
    assert (header.shape, header.levels, header.images) == ((2, 3), 5, 10)
    assert header.software["jax"] == jax.__version__


# --- What cannot be encoded


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (drawn(2, shape=(3, 2)), r"the model's shape \(2, 3\).*got \(2, 3, 2\)"),
        (drawn(2, levels=6) * 0 + 5, "levels from 0 to 4, got 5 to 5 in images 0 to 1"),
        (drawn(2, dtype=np.int16) - 9, "got -"),
    ],
)
def test_refuses_images(codec, given, message):
    with pytest.raises(CannotEncode, match=message):
        codec.encode(given)


def test_refuses_streams_that_do_not_fit_together(codec, images):
    file = io.BytesIO()
    with pytest.raises(CannotEncode, match="one dtype, got uint8 and then int32"):
        codec.encode_stream([images, images.astype(np.int32)], file)
    with pytest.raises(ValueError, match="count says 11 images, got 10"):
        codec.encode_stream([images], file, count=11)
    with pytest.raises(ValueError, match="one for each image, got 3"):
        codec.encode_stream([images], file, names=["a", "b", "c"])
    with pytest.raises(ValueError, match="each of the 10 images, got more"):
        codec.encode_stream([images], file, names=map(str, range(11)))
    for options, message in (
        ({"source": "socket"}, "source must be one of array, folder, got 'socket'"),
        ({"source": "folder"}, "names must be given for source='folder'"),
    ):
        with pytest.raises(ValueError, match=message):
            codec.encode_stream([images], file, **options)


def test_names_that_are_too_long_are_refused_before_the_work(codec, images, monkeypatch):
    monkeypatch.setattr(Chain, "encode", lambda *_, **__: pytest.fail("this was coded"))
    with pytest.raises(ValueError, match="names must have 4194304 bytes in a chunk at most"):
        codec.encode_stream([images], io.BytesIO(), names=["x" * 2**21] * 10)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be from 1 to 65536, got 0"),
        ({"batch_size": 2**22}, ValueError, "batch_size must be from 1 to 174762"),
        ({"chunk": 0}, ValueError, "chunk must be from 1"),
        ({"seed": -1}, ValueError, "seed must be from 0"),
        (
            {"first_batch": 33},
            CannotEncode,
            "first_batch must be from 1 to batch_size, which is 32",
        ),
        ({"label": "x" * 1001}, ValueError, "label must have 1000 characters at most, got 1001"),
        ({"resolution": 0.1}, CannotEncode, "resolution"),
        ({"grid": "no_such"}, dk.registry.UnknownPartError, "no grid 'no_such'"),
    ],
)
def test_refuses_settings(model, options, error, message):
    with pytest.raises(error, match=message):
        Codec(model, **options)


def test_refuses_continuous_data_and_levels_that_a_dtype_does_not_hold():
    with pytest.raises(CannotEncode, match="GaussianDecoder, which is for continuous data"):
        Codec(make(levels=None, decoder="gaussian"))
    with pytest.raises(CannotEncode, match=r"integers 0 \.\.\. 255, got the dtype int8"):
        Codec(make(levels=256, schedule="linear_logsnr"), 1).encode(drawn(2, dtype=np.int8))


# --- The wrong model, the wrong machine


def with_one_bit_changed(model):
    leaves, tree = jax.tree.flatten(model)
    place = next(i for i, leaf in enumerate(leaves) if eqx.is_inexact_array(leaf))
    flat = np.array(leaves[place]).reshape(-1)
    flat[-1] = np.nextafter(flat[-1], np.float32(9))
    leaves[place] = jax.numpy.asarray(flat.reshape(leaves[place].shape))
    return jax.tree.unflatten(tree, leaves)


def test_another_model_is_refused(model, data):
    for other, message in (
        (with_one_bit_changed(model), "'step 7'.*same parts as this one.*other parameters"),
        (make(schedule="linear_logsnr"), "'step 7'.*other parts or options"),
        (make(schedule="learned_linear", data_std=0.5), "'step 7'.*other parts or options"),
        (make(levels=6), r"\(2, 3\) with 5 levels; this model is for \(2, 3\) with 6"),
        (make(shape=(3, 2)), r"this model is for \(3, 2\)"),
    ):
        with pytest.raises(WrongModel, match=message):
            Codec(other, 3).decode(data)


def test_a_model_under_the_names_of_another_version_is_read(codec, data):
    mine = codec.fingerprint
    header = {"model": {"structure": "0" * len(mine.structure), "parameters": mine.parameters}}
    for one, other in zip(codec.decode(rewritten(data, header=header)), codec.decode(data), strict=True):
        np.testing.assert_array_equal(one, other)


def test_fingerprints_tell_models_apart(model):
    mine = fingerprint(model)
    assert fingerprint(make(schedule="learned_linear")) == mine
    bit = fingerprint(with_one_bit_changed(model))
    assert bit.structure == mine.structure
    assert bit.parameters != mine.parameters
    for other in (
        make(schedule="linear_logsnr"),
        make(schedule="learned_linear", network=("mlp", {"width": 9, "depth": 1})),
        make(schedule="learned_linear", process="variance_exploding"),
        make(schedule="learned_linear", levels=6),
        make(schedule="learned_linear", data_std=0.5),
    ):
        assert fingerprint(other).structure != mine.structure


def test_a_machine_that_rounds_otherwise_is_refused(model, data, monkeypatch):
    # The last bit of each mean is another: what a newer processor may do.
    reverse = Chain.reverse

    def rounds_otherwise(self, y, step):
        mean, std = reverse(self, y, step)
        return np.nextafter(mean, np.float32(np.inf)), std

    monkeypatch.setattr(Chain, "reverse", rounds_otherwise)
    here = Codec(model, 3)
    with pytest.raises(CannotReproduce, match=r"other floats here.*kind of device"):
        here.decode(data)
    # And if nobody had looked: no pixel of it would have come out.
    fit = Codec(model, 3, batch_size=3, chunk=4)
    probe = Reader(io.BytesIO(fit.encode(drawn(1)))).header["probe"]
    forged = rewritten(data, header={"probe": probe})
    with pytest.raises(CannotReproduce, match="images 0 to 3 were read as they were written, but"):
        fit.decode(forged)
    missing = []
    assert not list(fit.decode_stream(io.BytesIO(forged), damaged=lambda *now: missing.append(now)))
    assert [images for images, _ in missing] == [range(4), range(4, 8), range(8, 10)]


def test_a_machine_whose_numpy_rounds_otherwise_is_refused(model, data, monkeypatch):
    # One value in many is another, none of those that coding a few images takes.
    exp = np.exp

    def rounds_otherwise(x, **options):
        found = exp(x, **options)
        if np.size(x) == 2**16:
            found[12345] = np.nextafter(found[12345], 1.0)
        return found

    monkeypatch.setattr(np, "exp", rounds_otherwise)
    with pytest.raises(CannotReproduce, match=r"other floats here.*kind of device"):
        Codec(model, 3, batch_size=3, chunk=4).decode(data)


def test_a_network_that_is_not_deterministic_is_refused(model, monkeypatch):
    reverse, calls = Chain.reverse, itertools.count()

    def wavers(self, y, step):
        mean, std = reverse(self, y, step)
        return mean * np.float32(1 + 1e-3 * next(calls)), std

    monkeypatch.setattr(Chain, "reverse", wavers)
    with pytest.raises(CannotReproduce, match="does not give the same floats twice"):
        Codec(model, 3).encode(drawn(2))


def test_what_was_otherwise_is_said(codec, data):
    software = codec.open(io.BytesIO(data)).header.software
    for header, message in (
        ({"probe": "x", "device": "gpu H100"}, "'device' was 'gpu H100', is 'cpu"),
        ({"probe": "x", "software": {**software, "jax": "0.9"}}, "'jax' was '0.9', is '"),
        ({"probe": "x"}, "versions and the kind of device .* are the same"),
        ({"logsnrs": "x"}, "grid 'uniform_t {}' comes out differently"),
        ({"grid": "no_such {}"}, "grid 'no_such {}', which cannot be made here"),
        ({"grid": "respaced {]"}, "cannot be made here"),
        ({"grid": 'respaced {"timesteps": 99999999999999999999}'}, "cannot be made here"),
        ({"grid": 'respaced {"timesteps": 2}', "steps": 1000}, "1000 steps .* cannot be made here"),
        ({"probe": "x", "software": {**software, "\x1b[2J": "1"}}, r"'\\x1b\[2J' was '1', is None"),
    ):
        with pytest.raises(CannotReproduce, match=message):
            codec.decode(rewritten(data, header=header))


# --- Damaged and hostile files


@pytest.mark.parametrize(
    "header",
    [
        {"steps": 2**16 + 1},
        {"steps": 0},
        {"steps": 3.0},
        {"steps": True},
        {"steps": "3"},
        {"steps": None},
        {"more": 1},
        {"batch_size": 2**40},
        {"first_batch": 4},
        {"chunk": 2**40},
        {"resolution": 1e9},
        {"resolution": 1},
        {"seed": -1},
        {"shape": []},
        {"shape": [2**28, 2**28]},
        {"shape": [2, -3]},
        {"shape": [[2], 3]},
        {"shape": "23"},
        {"levels": 1},
        {"levels": 257},
        {"dtype": "object"},
        {"dtype": "float32"},
        {"source": "socket"},
        {"images": -1},
        {"images": "ten"},
        {"model": {"parameters": "x"}},
        {"model": {"parameters": "x", "structure": 1}},
        {"model": {"parameters": "\x1b[2J", "structure": "ab"}},
        {"model": []},
        {"software": {"jax": 1}},
        {"label": 1},
    ],
    ids=str,
)
def test_headers_that_no_codec_writes(codec, data, header):
    (name, value), message = *header.items(), "the header says {}="
    if name == "more" or value is None:
        message = "the header must say"
    elif value == 257:  # of which the dtype has no room for the last
        message = "the header says dtype='uint8'"
    with pytest.raises(DamagedFile, match=message.format(name)):
        codec.decode(rewritten(data, header=header))


def test_a_header_is_what_it_was(codec, data):
    header = Reader(io.BytesIO(data)).header
    assert Header.read(header).model == codec.fingerprint


def test_the_number_of_images_is_checked(codec, data):
    with pytest.raises(DamagedFile, match="must hold 12 images, got 10"):
        codec.decode(rewritten(data, header={"images": 12}))


def test_damage_costs_the_images_of_its_chunk(codec, data, images):
    middle = data.index(b"\xc5chunk", data.index(b"\xc5chunk") + 1) + 90
    damaged = bytearray(data)
    damaged[middle] ^= 1
    with pytest.raises(DamagedFile, match="chunk 1 is damaged"):
        codec.decode(bytes(damaged))
    missing = []
    parts = codec.decode_stream(io.BytesIO(bytes(damaged)), damaged=lambda *now: missing.append(now))
    np.testing.assert_array_equal(np.concatenate(list(parts)), np.delete(images, range(4, 8), 0))
    assert [where for where, _ in missing] == [range(4, 8)]


def test_a_file_that_claims_many_images_is_given_up_early(codec, data, monkeypatch):
    # However few words there are, a model whose bound is poor leaves more of them for each image.
    coded, decode_batch = [], Chain._decode_batch
    monkeypatch.setattr(Chain, "_decode_batch", lambda *args: coded.append(1) or decode_batch(*args))
    written = codec.with_steps(1).encode(drawn(4))
    header = {"chunk": 10**7, "images": 10**7}
    claimed = rewritten(written, header=header, chunk=lambda chunk: dataclasses.replace(chunk, count=10**7))
    with pytest.raises(CannotReproduce, match=r"do not decode: .* of \d+ words \d+ are left"):
        codec.decode(claimed)
    assert len(coded) < 1000  # of three million batches


def test_what_is_no_file_of_ours(codec, data):
    for wrong, error in (
        (b"", NotACodecFile),
        (gzip.compress(data), NotACodecFile),
        (data[:8] + b"\x01" + data[9:], WrongVersion),
        (data[:-3], DamagedFile),
        (data[:40], DamagedFile),
    ):
        with pytest.raises(error):
            codec.decode(wrong)


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_fuzz_of_the_words(codec, data, images, count):
    """Files whose words are not those that were written, under true checksums."""
    rng, outcomes = random.Random(0), []

    def mutate(chunk):
        words = chunk.words.copy()
        kind = rng.randrange(6)
        if kind == 0:
            words[rng.randrange(len(words))] ^= np.uint32(1 << rng.randrange(32))
        elif kind == 1:
            words = words[: rng.randrange(len(words))]
        elif kind == 2:
            words = np.insert(words, rng.randrange(len(words)), np.uint32(rng.getrandbits(32)))
        elif kind == 3:
            words = np.frombuffer(rng.randbytes(4 * rng.randrange(100)), "<u4").astype(np.uint32)
        elif kind == 4:
            words = np.full(rng.choice((2, 3, 50)), rng.choice((0, 1, 2**32 - 1)), np.uint32)
        else:
            words = np.sort(words)
        return Chunk(chunk.first, chunk.count, words, chunk.images_digest, chunk.names)

    for _ in range(count):
        try:
            decoded = codec.decode(rewritten(data, chunk=mutate))
        except CodecError as error:
            outcomes.append(type(error))
        else:
            outcomes.append(None)
            np.testing.assert_array_equal(decoded, images)
    assert outcomes.count(CannotReproduce) > 0.8 * count
    assert set(outcomes) <= {CannotReproduce, DamagedFile, None}


# --- Real images, all presets, many steps


@pytest.mark.slow
def test_another_process_decodes(tmp_path, codec, data, images):
    """Nothing of the process is in the file: not the order of hashes, nor where functions lie."""
    (tmp_path / "coded").write_bytes(data)
    np.save(tmp_path / "images.npy", images)
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from test_codec import Codec, make
codec = Codec(make(schedule="learned_linear"))
decoded = codec.decode(open("coded", "rb").read())
np.testing.assert_array_equal(decoded, np.load("images.npy"))
print(codec.fingerprint)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(codec.fingerprint)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    shape=st.sampled_from([(1,), (7,), (2, 3), (1, 4, 4), (3, 2, 5)]),
    levels=st.sampled_from([2, 3, 17, 256, 1000]),
    steps=st.integers(1, 60),
    count=st.integers(1, 9),
    batch_size=st.integers(1, 5),
    chunk=st.integers(1, 6),
    preset=st.sampled_from(["vdm", "ddpm", "edm", "flow_matching", "ve_sde"]),
    seed=st.integers(0, 2**32),
)
def test_round_trip_of_anything(shape, levels, steps, count, batch_size, chunk, preset, seed):
    model = make(preset, shape, levels, seed=seed % 1000)
    codec = Codec(model, steps, batch_size=batch_size, chunk=chunk, seed=seed)
    given = drawn(count, shape, levels, np.uint16, seed)
    np.testing.assert_array_equal(codec.decode(codec.encode(given)), given)


@pytest.mark.slow
def test_round_trip_with_the_network_of_the_preset():
    given = Digits().test.gather(np.arange(5))
    codec = Codec(make("vdm", (1, 8, 8), 17, network=dk.preset("vdm").network), 20, batch_size=4)
    np.testing.assert_array_equal(codec.decode(codec.encode(given)), given)


def real_images(name):
    """Some test images, and how many levels they have."""
    if name == "digits":
        return Digits().test.gather(np.arange(6)), 17
    if not REAL.is_dir():
        pytest.skip("there is no folder shared/data beside the repository")
    if name == "cifar10 (jpeg copy)":
        from PIL import Image

        with np.load(REAL / "cifar10_jpeg" / "test.npz") as archive:
            jpeg, offsets = archive["jpeg"], archive["offsets"]
        found = [
            np.asarray(Image.open(io.BytesIO(jpeg[a:b].tobytes())).convert("RGB"))
            for a, b in itertools.pairwise(offsets[:5])
        ]
        return np.stack(found).transpose(0, 3, 1, 2), 256
    (file,) = (REAL / name).glob("t10k-images*")
    return read_idx(file)[:6, None], 256


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("digits", "vdm"),
        ("digits", "edm"),
        ("mnist", "flow_matching"),
        ("mnist", "vdm"),
        ("fashion_mnist", "iddpm"),
        ("fashion_mnist", "edm"),
        ("cifar10 (jpeg copy)", "vdm"),
        ("cifar10 (jpeg copy)", "iddpm"),
    ],
)
def test_round_trip_of_real_images(name, preset):
    given, levels = real_images(name)
    model = make(preset, given.shape[1:], levels)
    base = Codec(model, 1, batch_size=4)
    for steps in (10, 50, 100, 250, 1000):
        codec = base.with_steps(steps)
        file = io.BytesIO()
        statistics = codec.encode_stream([given], file)
        decoded = codec.decode(file.getvalue())
        assert decoded.dtype == given.dtype
        np.testing.assert_array_equal(decoded, given)
        assert statistics.dimensions == math.prod(given.shape)
