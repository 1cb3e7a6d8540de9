"""Prompts of a telephone exchange, spoken by one voice, with their words."""

import gzip
import re
import wave
from pathlib import Path

import numpy as np

from headkit.assets.recordings import SAMPLE_RATE, Recording

SPOKEN_RATE = 8000
DESCRIBED = ("[", "(", "<")
KEYS = {"*": "star", "#": "pound"}


def prompts(least_seconds: float = 0.0, most_seconds: float = 30.0) -> list[Recording]:
    """The English prompts of Asterisk whose words are listed, without tones and noises.

    They were recorded for the telephone, at 8000 samples a second; the upper half of the spectrum
    at 16000 is empty.

    Args:
        least_seconds: only longer ones.
        most_seconds: only those that are not longer; Whisper hears 30 seconds.

    Returns:
        list[Recording]: by name.

    Raises:
        RuntimeError: if they can neither be found nor downloaded, or a file is not as expected.

    Source:
        Allison Smith for Digium, CC BY-SA 3.0, from the Debian packages asterisk-core-sounds-en
        and asterisk-core-sounds-en-wav.
    """
    from headkit.assets.store import fetch

    sounds = fetch("asterisk-prompts")
    listed = fetch("asterisk-prompt-list") / "core-sounds-en.txt.gz"
    found = []
    for name, text in sorted(read_list(gzip.decompress(listed.read_bytes()).decode()).items()):
        path = sounds / f"{name}.wav"
        if not path.is_file():
            continue
        samples = _samples(path)
        if least_seconds < len(samples) / SAMPLE_RATE <= most_seconds:
            found.append(Recording(name, samples, SAMPLE_RATE, text))
    return found


def read_list(text: str) -> dict[str, str]:
    """Words of every prompt in lower case, by name; what is no speech is left out.

    Args:
        text: lines ``name: words``; ``;`` begins a comment, words in brackets describe a sound.

    Example:
        >>> read_list("; sounds\\n\\nthanks: Thank you.\\nbeep: [a tone]\\nsaid: Press 1, or #.")
        {'thanks': 'thank you', 'said': 'press 1 or pound'}
    """
    found = {}
    for line in text.splitlines():
        name, colon, words = line.partition(":")
        words = words.strip().lower()
        if not colon or name.startswith(";") or words.startswith(DESCRIBED):
            continue
        for sign, word in KEYS.items():
            words = words.replace(sign, f" {word} ")
        spoken = " ".join(re.findall(r"[a-z0-9']+", words))
        if spoken:
            found[name.strip()] = spoken
    return found


def _samples(path: Path) -> np.ndarray:
    with wave.open(str(path), "rb") as file:
        form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
        data = file.readframes(file.getnframes())
    if form != (1, 2, SPOKEN_RATE):
        raise RuntimeError(
            f"[prompts] expected 1 channel of 2 bytes at {SPOKEN_RATE} Hz; found {form[0]} of "
            f"{form[1]} at {form[2]} in {path.name}"
        )
    return twice_as_fast(np.frombuffer(data, "<i2").astype(np.float32) / 32768)


def twice_as_fast(samples: np.ndarray) -> np.ndarray:
    """The same sound at twice the sample rate, its spectrum as it was.

    Args:
        samples: float [n].

    Returns:
        numpy.ndarray: float32 [2 n]; every second one is a sample.

    Example:
        >>> twice_as_fast(np.array([1.0, 1.0, 1.0])).round(6).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    count = len(samples)
    if not count:
        return np.zeros(0, np.float32)
    spectrum = np.fft.rfft(samples)
    if count % 2 == 0:
        spectrum[-1] /= 2  # half of it belongs to the negative frequency
    return (2 * np.fft.irfft(spectrum, 2 * count)).astype(np.float32)
