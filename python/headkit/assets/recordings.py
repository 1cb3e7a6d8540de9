"""Short recordings of English speech with their words."""

import re
import wave
from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16000


@dataclass(frozen=True)
class Recording:
    """One spoken sentence.

    Attributes:
        name: names the recording.
        samples: float32 in [-1, 1), shape [samples], one channel.
        sample_rate: samples a second, 16000.
        transcript: the words in lower case, without punctuation.
    """

    name: str
    samples: np.ndarray
    sample_rate: int
    transcript: str


def recordings() -> list[Recording]:
    """Five sentences of Jane Austen's Sense and Sensibility, 3 to 7 seconds each.

    Returns:
        list[Recording]: in the order of the book.

    Raises:
        RuntimeError: if they can neither be found nor downloaded, or a file is not as expected.

    Source:
        LibriVox (public domain), as cut and transcribed in the tests of pocketsphinx.
    """
    from headkit.assets.store import fetch

    folder = fetch("librivox")
    lines = (folder / "transcription").read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        parts = re.fullmatch(r"<s> (.+) </s> \(([\w-]+)\)", line.strip())
        if parts is None:
            raise RuntimeError(f"[recordings] expected '<s> words </s> (name)'; found {line!r}")
        with wave.open(str(folder / f"{parts[2]}.wav"), "rb") as file:
            form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            data = file.readframes(file.getnframes())
        if form != (1, 2, SAMPLE_RATE):
            raise RuntimeError(
                "[recordings] expected 1 channel of 2 bytes at 16000 Hz; found "
                f"{form[0]} of {form[1]} at {form[2]} in {parts[2]}.wav"
            )
        samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
        found.append(Recording(parts[2], samples, SAMPLE_RATE, parts[1]))
    return found
