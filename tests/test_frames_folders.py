"""Folders of WAV files and of images: what is read, what is said, what is refused."""

import sys

import numpy as np
import pytest
import soundfile
from exact import one_line
from PIL import Image

from iflow_lib.frames.folders import audio_windows, image_folder


def tone(seconds, rate, hertz=440.0, channels=1):
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave * (1 - 0.5 * c) for c in range(channels)], 1)


@pytest.fixture
def sounds(tmp_path):
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "a.wav", tone(0.1, 8000), 8000, subtype="FLOAT")
    soundfile.write(
        tmp_path / "deep" / "b.WAV", tone(0.2, 8000), 8000, subtype="FLOAT", format="WAV"
    )
    soundfile.write(tmp_path / "short.wav", tone(0.01, 8000), 8000, subtype="FLOAT")
    (tmp_path / "notes.txt").write_text("no sound")
    return tmp_path


def test_windows_of_sounds(sounds):
    found = audio_windows(sounds, length=256)
    assert found.values.shape == (3 + 6, 256, 1) and found.channels == ("sound",)
    assert found.counts["files"] == 3
    assert found.counts["files shorter than a window, left out"] == 1
    assert sorted(set(found.entities)) == ["a.wav", "deep/b.WAV"]
    np.testing.assert_allclose(found.values[1, :, 0], tone(0.1, 8000)[256:512, 0], atol=1e-7)
    assert found.positions.tolist() == [0, 256, 512, 0, 256, 512, 768, 1024, 1280]
    train, test = found.split(test=0.5)
    assert not set(train.entities) & set(test.entities) and len(train) + len(test) == 9
    assert "8000 samples a second" in repr(found)
    assert audio_windows(sounds, length=256, stride=100).positions[:3].tolist() == [0, 100, 200]


def test_sounds_are_resampled_and_stereo_is_averaged(sounds):
    soundfile.write(sounds / "z.wav", tone(0.5, 44100, channels=2), 44100, subtype="FLOAT")
    with pytest.raises(ValueError) as error:
        audio_windows(sounds, length=256)
    assert "different rates, 8000 Hz, 44100 Hz: give rate=..." in one_line(error)
    with pytest.raises(ValueError) as error:
        audio_windows(sounds, length=256, rate=8000, mono=False)
    assert "1 and 2 channels: give mono=True" in one_line(error)
    found = audio_windows(sounds, length=4000, rate=8000)
    assert found.counts["files resampled"] == 1
    assert "the channels of stereo files are averaged" in found.notes
    middle = slice(500, 3500)  # the filter has no past at the ends
    truth = 0.75 * tone(0.5, 8000)[:, 0]
    np.testing.assert_allclose(found.values[0, middle, 0], truth[middle], atol=2e-3)
    for name in ("a.wav", "short.wav", "deep/b.WAV"):
        (sounds / name).unlink()
    both = audio_windows(sounds, length=256, mono=False)
    assert both.channels == ("sound_1", "sound_2") and both.values.shape[2] == 2


def test_sounds_that_are_refused(sounds, tmp_path, monkeypatch):
    for call, words in (
        (lambda: audio_windows(tmp_path / "none", 256), "is no folder: give the folder that holds"),
        (lambda: audio_windows(sounds / "deep", 5000), "none of the 1 files has 5000 samples"),
        (lambda: audio_windows(sounds, 3), "length must be a whole number of at least 4"),
        (lambda: audio_windows(sounds, 256, rate=0), "rate must be a whole number"),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert words in one_line(error)
    (sounds / "broken.wav").write_bytes(b"RIFFnothing")
    with pytest.raises(ValueError) as error:
        audio_windows(sounds, 256)
    assert "broken.wav cannot be read as a WAV file" in one_line(error)
    (sounds / "empty").mkdir()
    with pytest.raises(ValueError) as error:
        audio_windows(sounds / "empty", 256)
    assert "holds no WAV files (.wav)" in one_line(error)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError) as error:
        audio_windows(sounds, 256)
    assert 'pip install "iflow-lib[frames]"' in one_line(error)


# ---------------------------------------------------------------- images


def picture(file, height, width, colour=(255, 0, 0), mode="RGB", **options):
    file.parent.mkdir(exist_ok=True)
    Image.new(mode, (width, height), colour).save(file, **options)


@pytest.fixture
def pictures(tmp_path):
    picture(tmp_path / "cats" / "wide.png", 20, 60)
    picture(tmp_path / "cats" / "exact.JPG", 16, 16, (0, 0, 0), quality=95)
    picture(tmp_path / "birds" / "small.png", 4, 4, (255, 255, 255))
    picture(tmp_path / "birds" / "grey.png", 32, 32, 51, mode="L")
    picture(tmp_path / "birds" / "clear.png", 32, 32, (0, 0, 0, 0), mode="RGBA")
    (tmp_path / "cats" / ".hidden.png").write_bytes(b"")
    return tmp_path


def test_images_of_mixed_sizes(pictures):
    found = image_folder(pictures, 16)
    assert found.x.shape == (5, 3, 16, 16) and found.classes == ("birds", "cats")
    assert found.labels.tolist() == [0, 0, 0, 1, 1]
    at = {name: found.x[i] for i, name in enumerate(found.files)}
    assert at["birds/clear.png"].unique().tolist() == [1.0]
    np.testing.assert_allclose(at["birds/grey.png"].unique(), [51 / 127.5 - 1], rtol=1e-6)
    assert at["cats/wide.png"][0].min() == 1 and at["cats/wide.png"][1:].max() == -1
    for words in ("1 of 5 were cut", "1 were smaller", "1 had transparent parts"):
        assert words in repr(found)
    grey = image_folder(pictures, (16, 24), mode="L")
    assert grey.x.shape == (5, 1, 16, 24)


def test_the_centre_is_cut_out(tmp_path):
    array = np.zeros((10, 30, 3), dtype=np.uint8)
    array[:, 10:20] = 255
    Image.fromarray(array).save(tmp_path / "a.png")
    found = image_folder(tmp_path, 10)
    assert found.labels is None and found.x.unique().tolist() == [1.0]


def test_images_that_are_refused(pictures, monkeypatch):
    for call, words in (
        (lambda: image_folder(pictures / "none", 16), "is no folder"),
        (lambda: image_folder(pictures, (1, 2, 3)), "size must be one number or a pair"),
        (lambda: image_folder(pictures, 16, mode="CMYK"), 'mode must be "RGB" for colour or "L"'),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert words in one_line(error)
    (pictures / "cats" / "broken.png").write_bytes(b"\x89PNG nothing")
    Image.new("I;16", (8, 8)).save(pictures / "cats" / "deep.png")
    with pytest.raises(ValueError) as error:
        image_folder(pictures, 16)
    text = one_line(error)
    assert "2 of 7 files cannot be read as images: cats/broken.png (" in text
    assert "cats/deep.png (pixels of mode I;16, not of 8 bits)" in text
    with pytest.warns(RuntimeWarning, match="cats/broken.png"):
        found = image_folder(pictures, 16, skip_broken=True)
    assert len(found) == 5 and "2 could not be read" in repr(found)
    picture(pictures / "loose.png", 8, 8)
    with pytest.raises(ValueError) as error:
        image_folder(pictures, 16)
    assert "others beside them, such as loose.png" in one_line(error)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError) as error:
        image_folder(pictures, 16)
    assert 'pip install "iflow-lib[frames]"' in one_line(error)
