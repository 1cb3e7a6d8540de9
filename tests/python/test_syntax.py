"""Treebanks: sentences, and the tokens of their words."""

import pytest
import tokenizers
import transformers

import headkit as hk

WORD = "{}\t{}\t_\t_\t_\t_\t{}\t{}\t_\t{}\n"


def treebank(*sentences):
    """CoNLL-U of sentences given as (form, head, relation), or (form, head, relation, misc)."""
    text = ""
    for sentence in sentences:
        for number, (form, head, relation, *misc) in enumerate(sentence, start=1):
            text += WORD.format(number, form, head, relation, *(misc or ["_"]))
        text += "\n"
    return text


def tiny_tokenizer(*pieces):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces]
    model = tokenizers.models.WordPiece(
        {piece: place for place, piece in enumerate(vocabulary)}, unk_token="[UNK]"
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def test_offsets_of_a_fast_tokenizer_find_the_words():
    (sentence,) = hk.parse_conllu(
        treebank(
            [
                ("Ünseen", 2, "amod"),
                ("birds", 3, "nsubj"),
                ("sing", 0, "root", "SpaceAfter=No"),
                ("!", 3, "punct"),
            ]
        )
    )
    assert sentence.text == "Ünseen birds sing!"
    tokenizer = tiny_tokenizer("Ün", "##seen", "bird", "##s", "sing", "!")
    encoded = tokenizer(sentence.text, return_offsets_mapping=True)
    found = hk.align_words(sentence, encoded["offset_mapping"])
    assert found.word_of_token == [-1, 0, 0, 1, 1, 2, 3, -1]
    assert found.head_of_word == [1, 2, -1, 2]
    assert found.skipped_arcs == 0


def test_messages_name_file_and_line(tmp_path):
    path = tmp_path / "broken.conllu"
    path.write_text(treebank([("a", 1, "dep")]))
    with pytest.raises(ValueError, match=r"HEAD .* in line 1 of .*broken.conllu; found '1'"):
        hk.read_conllu(path)
    with pytest.raises(RuntimeError, match="missing"):
        hk.read_conllu(tmp_path / "missing.conllu")


def test_arrays_of_other_parsers_are_checked():
    with pytest.raises(ValueError, match="head_of_word"):
        hk.SequenceSyntax([-1, 0], [0], ["root"])
    with pytest.raises(ValueError, match="inside the 1 characters"):
        (sentence,) = hk.parse_conllu(treebank([("a", 0, "root")]))
        hk.align_words(sentence, [(0, 2)])
