"""Audio files: what is read equals what was recorded, and broken files are named."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ser_fl.data.audio import content_digest, duration_s, header_of, probe_audio, probe_header, read_audio, write_wav
from ser_fl.data.headers import missing_bytes, surplus_bytes
from ser_fl.errors import UserError


def pcm(num_samples: int = 400, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-32768, 32768, (num_samples, channels)).astype(np.int16)


@pytest.mark.parametrize("suffix", ["wav", "flac", "WAV"])
def test_sixteen_bit_samples_are_read_exactly(tmp_path: Path, suffix: str) -> None:
    samples = pcm()
    soundfile.write(tmp_path / f"a.{suffix}", samples, 22050)
    waveform_T, sample_rate_hz = read_audio(tmp_path / f"a.{suffix}")
    assert sample_rate_hz == 22050
    assert waveform_T.dtype == torch.float32
    assert torch.equal(waveform_T, torch.from_numpy(samples[:, 0] / np.float32(32768)))


def test_channel_choice(tmp_path: Path) -> None:
    samples = pcm(channels=2)
    soundfile.write(tmp_path / "a.wav", samples, 48000)
    left, right = (torch.from_numpy(samples[:, index] / np.float32(32768)) for index in (0, 1))
    assert torch.equal(read_audio(tmp_path / "a.wav", "first")[0], left)
    assert torch.equal(read_audio(tmp_path / "a.wav", "second")[0], right)
    torch.testing.assert_close(read_audio(tmp_path / "a.wav", "mean")[0], (left + right) / 2, rtol=0, atol=1e-7)


def test_mean_of_spaced_microphones_comb_filters(tmp_path: Path) -> None:
    """Why "first" is the default: a delay of half a period between the channels cancels the tone."""
    time = np.arange(4800) / 48000
    tone = np.stack([np.sin(2 * np.pi * 1000 * time), np.sin(2 * np.pi * 1000 * (time - 0.0005))], axis=1) / 2
    soundfile.write(tmp_path / "a.wav", tone, 48000)
    assert read_audio(tmp_path / "a.wav", "mean")[0].abs().max() < 1e-3
    assert read_audio(tmp_path / "a.wav", "first")[0].abs().max() > 0.49


def test_channel_that_is_not_there(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", pcm(), 16000)
    with pytest.raises(UserError, match=r"a\.wav: it has one channel.*data\.channel=first"):
        read_audio(tmp_path / "a.wav", "second")
    with pytest.raises(UserError, match=r"unknown data\.channel 'left'.*first, mean, second"):
        read_audio(tmp_path / "a.wav", "left")


def test_cut_off_flac_passes_the_probe_and_fails_in_reading(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.flac", pcm(50_000), 16000)
    content = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    assert probe_header(tmp_path / "cut.flac") is None
    assert probe_audio(tmp_path / "whole.flac", "first") is None
    assert probe_audio(tmp_path / "cut.flac", "first")
    with pytest.raises(UserError, match=r"cannot read .*cut\.flac"):
        read_audio(tmp_path / "cut.flac")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"no audio", "text; download"),
        (b"\x80\x81\x82" * 99, "no header that tells its format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 98350\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s98350--00.wav\n", "git annex get"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "a.wav"
    if content is not None:
        path.write_bytes(content)
    assert reason in str(probe_header(path))
    assert reason in str(probe_audio(path, "first"))
    with pytest.raises(UserError, match=rf"cannot read .*a\.wav: .*{reason}"):
        read_audio(path)


def test_file_without_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16000)
    assert probe_header(tmp_path / "a.wav") == probe_audio(tmp_path / "a.wav", "first") == "it holds no samples"
    with pytest.raises(UserError, match=r"a\.wav: it holds no samples"):
        read_audio(tmp_path / "a.wav")


def encoded(samples: np.ndarray, format: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format=format, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("riff", [0, 36, 2**32 - 1], ids=["no length at all", "the header's own", "of a stream"])
@pytest.mark.parametrize("data", [0, 2**32 - 1, 2**31])
def test_lengths_that_a_stream_leaves_in_a_wav_header_are_mended(tmp_path: Path, riff: int, data: int) -> None:
    """Programs that write to a pipe leave the lengths as they were before the first sample."""
    path, samples = tmp_path / "a.wav", pcm()
    content = bytearray(encoded(samples, "WAV", "PCM_16"))
    assert content[36:40] == b"data"
    content[4:8], content[40:44] = riff.to_bytes(4, "little"), data.to_bytes(4, "little")
    path.write_bytes(content)
    assert probe_header(path) is None
    assert torch.equal(read_audio(path)[0], torch.from_numpy(samples[:, 0] / np.float32(32768)))
    assert path.read_bytes() == content
    assert missing_bytes(path) == surplus_bytes(path) == 0
    content[40:44] = bytes(4)
    path.write_bytes(content[:44])
    assert probe_header(path) == "it holds no samples"
    path.write_bytes(content[:44] + b"LIST" + (26).to_bytes(4, "little") + b"x" * 26)
    assert probe_header(path) == "it holds no samples", "what follows is another chunk"


def test_a_length_of_zero_in_other_headers_is_mended_or_told(tmp_path: Path) -> None:
    samples = pcm(4000)
    au = bytearray(encoded(samples, "AU", "PCM_16"))
    au[8:12] = bytes(4)
    (tmp_path / "a.au").write_bytes(au)
    assert torch.equal(read_audio(tmp_path / "a.au")[0], torch.from_numpy(samples[:, 0] / np.float32(32768)))
    rf64 = encoded(samples, "RF64", "PCM_16")
    place = rf64.index(b"ds64") + 8
    (tmp_path / "a.wav").write_bytes(rf64[:place] + bytes(24) + rf64[place + 24 :])
    assert "tells a length of 0, but more follows; write the header anew" in str(probe_header(tmp_path / "a.wav"))
    flac = bytearray(encoded(samples, "FLAC"))
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(flac)
    assert "tells no length, as of a stream; write it anew" in str(probe_header(tmp_path / "a.flac"))


def test_a_header_that_tells_too_few_samples_is_found(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.wav", encoded(pcm(5000), "WAV", "PCM_16")
    listed = b"LIST" + (6000).to_bytes(4, "little") + b"x" * 6000
    for content, surplus in (
        (whole, 0),
        (whole + listed, 0),
        (whole + b"TAG" + b"x" * 125, 0),
        (whole + bytes(512), 0),
        (whole[:40] + (1000).to_bytes(4, "little") + whole[44:], 9000),
        (encoded(pcm(5000), "FLAC"), 0),
    ):
        path.write_bytes(content)
        assert surplus_bytes(path) == surplus


MAGIC = {
    "empty": (b"", "empty; download"),
    "zeros": (bytes(5000), "a file of zeros; download"),
    "one byte": (b"\xff", "no MP3 follows|header that tells"),
    "text": (b"a transcript of what is said\n" * 99, "text; download"),
    "utf-16": ("a transcript\n".encode("utf-16") * 99, "text; download"),
    "cut utf-8": (("\n" + "ä" * 999).encode(), "text; download"),
    "json": (b'\n{"error": 404}', "JSON; download"),
    "xml": (b"<?xml version='1.0'?><Error>denied</Error>", "web page or XML; download"),
    "html": (b"\xef\xbb\xbf\r\n<!DOCTYPE html>", "web page or XML; download"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
    "zip": (b"PK\3\4" + bytes(range(256)), "a ZIP archive; unpack it"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "a gzip archive"),
    "tar": (b"a.wav" + bytes(252) + b"ustar\00000" + bytes(900), "a tar archive"),
    "rar": (b"Rar!\x1a\7\0" + bytes(99), "a RAR archive"),
    "apple double": (b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(99), r"the macOS twin of a file"),
    "ds store": (b"\0\0\0\1Bud1" + bytes(99), "settings of macOS"),
    "shortcut": (b"L\0\0\0\1\x14\2\0" + bytes(99), "a Windows shortcut"),
    "m4a": (b"\0\0\0\x20ftypM4A " + bytes(99), "libsndfile does not read; convert it to WAV"),
    "avi": (b"RIFF\0\1\0\0AVI LIST" + bytes(99), "libsndfile does not read; convert it to WAV"),
    "midi": (b"MThd\0\0\0\6\0\1" + bytes(99), "notes and no sound"),
    "mp3 coding in wav": (
        b"RIFF\x24\1\0\0WAVEfmt \x10\0\0\0\x55\0\1\0\x80\x3e\0\0\0\x7d\0\0\1\0\0\0data" + bytes(260),
        "of a coding that libsndfile does not know .* convert it to WAV",
    ),
    "webm": (b"\x1aE\xdf\xa3" + bytes(99), "libsndfile does not read; convert it to WAV"),
    "picture": (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(99), "a picture"),
    "samples": (np.random.default_rng(0).bytes(5000), "header that tells its format and sampling rate; make a WAV"),
    "two bytes of mpc2k": (b"\1\4" + b"a name of a song  " + np.random.default_rng(0).bytes(5000), "header that tells"),
    "two bytes of mp3": (
        b"\xff\xfb" + np.random.default_rng(0).bytes(5000),
        "no MP3 follows|header that tells",
    ),
}


@pytest.mark.parametrize("suffix", [".wav", ".vox", ".gsm", ".au", ".snd", ".raw", ".pcm", ".mp3", ""])
@pytest.mark.parametrize("kind", MAGIC)
def test_only_a_header_makes_audio_of_a_file(tmp_path: Path, kind: str, suffix: str) -> None:
    """libsndfile takes anything for telephone speech that is called .vox, .gsm, .au or .snd."""
    content, what = MAGIC[kind]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    if suffix == ".mp3" and kind == "samples":
        what = "no MP3 follows"
    with pytest.raises(UserError, match=rf"cannot read .*: it (is|has) .*({what})") as raised:
        read_audio(path)
    assert "\n" not in str(raised.value)
    assert probe_header(path) is not None


@pytest.mark.parametrize("suffix", [".wav", ".vox", ".gsm", ".au", ".raw", ".pcm", ".m4a", ".json", ""])
@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        *(("WAV", subtype) for subtype in ("PCM_16", "PCM_U8", "PCM_24", "DOUBLE", "ULAW", "IMA_ADPCM")),
        *(("WAVEX", "PCM_16"), ("RF64", "PCM_16"), ("W64", "PCM_16"), ("AIFF", "PCM_16"), ("CAF", "PCM_16")),
        *(("AU", "ULAW"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")),
    ],
)
def test_a_true_header_is_read_whatever_the_ending(tmp_path: Path, suffix: str, format: str, subtype: str) -> None:
    samples = 0.5 * np.sin(np.arange(16000) / 20)
    (tmp_path / f"a{suffix}").write_bytes(encoded(samples, format, subtype))
    waveform_T, rate_hz = read_audio(tmp_path / f"a{suffix}")
    assert rate_hz == 16000
    assert 16000 <= len(waveform_T) < 16600
    error = waveform_T[2000:14000].numpy() - samples[2000:14000]
    assert np.sqrt(np.square(error).mean()) < 0.02


def test_a_cut_file_is_refused_or_found(tmp_path: Path) -> None:
    """In every format: either it cannot be read, or what it lacks can be told from its header."""
    samples = 0.5 * np.sin(np.arange(30_000) / 20)
    path = tmp_path / "a.wav"
    for format in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3"):
        whole = encoded(samples, format)
        path.write_bytes(whole)
        assert missing_bytes(path) == 0
        assert header_of(path) == (duration_s(path), 1) == (len(read_audio(path)[0]) / 16000, 1)
        for share in (0.5, 0.9, *((0.99,) if format != "MP3" else ())):  # whose last frame is padding
            path.write_bytes(whole[: int(share * len(whole))])
            if (reason := probe_audio(path, "first")) is not None:
                assert "cut off" in reason
            else:
                lacks_s = header_of(path)[0] - len(read_audio(path)[0]) / 16000
                assert missing_bytes(path) or lacks_s > 0.01, (format, share)
                assert duration_s(path) == len(read_audio(path)[0]) / 16000


def test_an_ogg_file_that_ends_before_its_last_page_is_cut(tmp_path: Path) -> None:
    whole = encoded(0.1 * np.random.default_rng(0).standard_normal(60_000), "OGG")
    assert whole.count(b"OggS") > 4
    (tmp_path / "a.ogg").write_bytes(whole[: whole.rindex(b"OggS")])
    assert missing_bytes(tmp_path / "a.ogg") > 0
    assert len(read_audio(tmp_path / "a.ogg")[0]) < 60_000


def test_a_span_is_what_the_whole_file_holds_there(tmp_path: Path) -> None:
    """After a jump an MP3 decoder lacks what earlier frames hold of the first one; GSM in WAV cannot jump at all."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000 * 9)
    for format, subtype, largest in (
        ("WAV", "PCM_16", 0),
        ("FLAC", "PCM_16", 0),
        ("OGG", "VORBIS", 0),
        ("MP3", "MPEG_LAYER_III", 1e-6),
        ("WAV", "GSM610", 0),
    ):
        path = tmp_path / f"{subtype}.{format}"
        rate = {"compression_level": 0.5, "bitrate_mode": "VARIABLE"} if format == "MP3" else {}
        soundfile.write(path, noise, 16000, format=format, subtype=subtype, **rate)
        whole_T = read_audio(path)[0]
        for begin_s, end_s in ((0.0, 1.0), (1.0, 2.5), (4.00003, 6.0), (8.0, 9.0)):
            part_T = read_audio(path, span_s=(begin_s, end_s))[0]
            expected_T = whole_T[round(16000 * begin_s) : round(16000 * end_s)]
            assert part_T.shape == expected_T.shape
            assert float((part_T - expected_T).abs().max()) <= largest, subtype


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (float("nan"), "some samples are no numbers"),
        (float("inf"), "some samples are no numbers"),
        (32768.0, r"samples reach 32768, expected \[-1, 1\]; rescale"),
        (-2.5, r"samples reach 2\.5, expected \[-1, 1\]; rescale"),
    ],
)
def test_unusable_samples_are_refused_and_probed(tmp_path: Path, bad: float, message: str) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.array([0.1, bad, 0.2], dtype=np.float32), 16000, subtype="FLOAT")
    assert probe_header(path) is None
    with pytest.raises(UserError, match=rf"a\.wav: {message}"):
        read_audio(path)
    assert probe_audio(path, "first")


def test_files_with_one_fault_have_one_reason(tmp_path: Path) -> None:
    """Figures and names belong to the error, not to the reason that files are grouped by."""
    for name, peak in (("a.wav", 100.0), ("b.wav", 200.0)):
        soundfile.write(tmp_path / name, np.array([peak], dtype=np.float32), 16000, subtype="FLOAT")
    for channel in ("first", "second"):
        reasons = {probe_audio(tmp_path / name, channel) for name in ("a.wav", "b.wav")}
        assert len(reasons) == 1 and None not in reasons


def test_missing_bytes_are_those_the_header_announces(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", pcm(1000), 16000)
    whole = (tmp_path / "a.wav").read_bytes()

    def missing(content: bytes) -> int:
        (tmp_path / "b.wav").write_bytes(content)
        return missing_bytes(tmp_path / "b.wav")

    assert missing(whole) == missing(whole + b"more") == 0
    assert missing(whole[:-500]) == 500
    assert missing(whole[:-8]) == 0, "some programs count the header too"
    for stream in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x00"):
        assert missing(b"RIFF" + stream + whole[8:-500]) == 0
    assert missing(b"") == missing(b"RIFF") == missing(b"fLaC\xff\xff\x00\x00") == 0


def test_floating_point_overshoot_is_cut(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([0.5, 1.2, -1.1], dtype=np.float32), 16000, subtype="FLOAT")
    assert read_audio(tmp_path / "a.wav")[0].tolist() == [0.5, 1.0, -1.0]


def test_written_wav_is_what_was_read_bit_for_bit(tmp_path: Path) -> None:
    samples = np.arange(-32768, 32768, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    waveform_T, sample_rate_hz = read_audio(tmp_path / "a.wav")
    write_wav(tmp_path / "deeper" / "b.wav", waveform_T, sample_rate_hz)
    written, rate = soundfile.read(tmp_path / "deeper" / "b.wav", dtype="int16")
    assert rate == 16000
    assert soundfile.info(tmp_path / "deeper" / "b.wav").subtype == "PCM_16"
    assert np.array_equal(written, samples)


def test_writing_cuts_at_full_scale_and_does_not_wrap(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", torch.tensor([1.0, 1.5, -1.5, 0.0]), 16000)
    assert soundfile.read(tmp_path / "a.wav", dtype="int16")[0].tolist() == [32767, 32767, -32768, 0]


@pytest.mark.parametrize("waveform", [torch.zeros(1, 8), torch.tensor([0.0, float("nan")])])
def test_writing_refuses_what_is_no_waveform(tmp_path: Path, waveform: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"finite and of shape \(T,\)"):
        write_wav(tmp_path / "a.wav", waveform, 16000)
    assert not list(tmp_path.iterdir())


def test_digest_follows_content_and_channel_not_the_name(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", pcm(channels=2), 16000)
    (tmp_path / "b.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    soundfile.write(tmp_path / "c.wav", pcm(channels=2, seed=1), 16000)
    first = content_digest(tmp_path / "a.wav", "first")
    assert len(first) == 16
    assert first == content_digest(tmp_path / "b.wav", "first")
    assert first != content_digest(tmp_path / "a.wav", "mean")
    assert first != content_digest(tmp_path / "c.wav", "first")
    with pytest.raises(UserError, match=r"gone\.wav: no such file"):
        content_digest(tmp_path / "gone.wav", "first")


def test_a_header_that_announces_more_than_there_is_costs_no_memory(tmp_path: Path) -> None:
    """2^36 - 1 samples, of which a float32 array would take 256 GB."""
    path = tmp_path / "a.flac"
    soundfile.write(path, pcm(), 16000)
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F  # STREAMINFO: 36 bits of total samples
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)
    assert soundfile.info(path).frames == 2**36 - 1
    with pytest.raises(UserError, match=r"cannot read .*a\.flac"):
        read_audio(path)


def test_long_recordings_are_read_in_blocks_to_the_same_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, channels in (("a.wav", 2), ("a.flac", 1)):
        soundfile.write(tmp_path / name, pcm(1000, channels), 16000)
        whole, _ = read_audio(tmp_path / name, "mean")
        for size in (1, 7, 500, 1000, 2000):
            with monkeypatch.context() as patch:
                patch.setattr("ser_fl.data.audio._BLOCK_SAMPLES", size * channels)
                assert torch.equal(read_audio(tmp_path / name, "mean")[0], whole)


def test_formats_that_cannot_be_wound_are_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", pcm(320) / 32768, 8000, subtype="GSM610")
    assert len(read_audio(tmp_path / "a.wav")[0]) >= 320  # in whole frames of the codec


def test_what_is_no_recording_is_told_in_a_line(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "fast.wav", pcm(), 999_999)
    (tmp_path / "a.raw").write_bytes(pcm().tobytes())
    os.mkfifo(tmp_path / "pipe.wav")  # opening it would wait for whoever writes
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "link.wav").symlink_to("gone.wav")
    (tmp_path / ".away.wav.icloud").write_bytes(b"bplist00")
    for name, reason in (
        ("fast.wav", "sampling rate beyond 1000 to 768000 Hz.*got 999999"),
        ("a.raw", "no header that tells its format and sampling rate"),
        ("link.wav", "a link to a file that is not there"),
        ("pipe.wav", "a device or a pipe"),
        ("folder.wav", "it is a folder"),
        ("away.wav", "it is in iCloud and not on this machine; download it"),
        ("none.wav", "no such file"),
        ("n" * 300 + ".wav", "no such file"),
        ("nul\0.wav", "no such file"),
    ):
        with pytest.raises(UserError, match=reason) as raised:
            read_audio(tmp_path / name)
        assert "\n" not in str(raised.value)
        assert probe_header(tmp_path / name) is not None
        assert probe_audio(tmp_path / name, "first") is not None


def test_a_name_of_any_bytes_is_opened(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    soundfile.write(tmp_path / "a.wav", pcm(), 16000)
    (tmp_path / "a.wav").rename(path)
    assert probe_header(path) is None
    assert len(read_audio(path)[0]) == 400


@pytest.mark.parametrize("locked", ["file", "folder"])
def test_what_may_not_be_read_is_not_missing(locked: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = folder / "deep" / "a.wav"
        path.parent.mkdir()
        soundfile.write(path, pcm(), 16000)
        (path if locked == "file" else path.parent).chmod(0)
        user = os.geteuid()
        try:
            if user == 0:  # nothing is locked to root
                os.seteuid(65534)
            assert probe_header(path) == "permission denied"
            with pytest.raises(UserError, match=r"a\.wav: permission denied"):
                read_audio(path)
            with pytest.raises(UserError, match=r"a\.wav: permission denied"):
                content_digest(path, "first")
        finally:
            os.seteuid(user)
            path.parent.chmod(0o755)
