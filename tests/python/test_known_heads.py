"""Heads whose part is known: those of the rxnmapper ALBERT, whose layers share their weights."""

import pytest
import torch
import transformers

import headkit as hk
from headkit import assets

REACTIONS = (
    "CC(=O)O.OCC>>CC(=O)OCC",
    "CC(=O)Cl.NCc1ccccc1>>CC(=O)NCc1ccccc1",
    "OB(O)c1ccccc1.Brc1ccncc1>>c1ccc(-c2ccncc2)cc1",
    "O=[N+]([O-])c1ccc(C)cc1.[H][H]>>Nc1ccc(C)cc1",
    "CC(=O)OC(C)=O.Nc1ccc(O)cc1>>CC(=O)Nc1ccc(O)cc1",
    "CC(=O)OC(C)=O.O=C(O)c1ccccc1O>>CC(=O)Oc1ccccc1C(=O)O",
    "CCBr.Oc1ccccc1>>CCOc1ccccc1",
    "O=Cc1ccccc1.CC(C)=O>>CC(=O)C=Cc1ccccc1",
    "COC(=O)c1ccccc1.[OH-]>>O=C(O)c1ccccc1",
    "C=CC=C.C=CC(=O)OC>>COC(=O)C1CC=CCC1",
    "CC(=O)c1ccccc1.[BH4-]>>CC(O)c1ccccc1",
    "O=C(Cl)c1ccccc1.CN>>CNC(=O)c1ccccc1",
    "CS(=O)(=O)Cl.OCCc1ccccc1>>CS(=O)(=O)OCCc1ccccc1",
    "CC(C)(C)OC(=O)NCc1ccccc1.Cl>>NCc1ccccc1",
    "Clc1ncccn1.NC1CCCCC1>>c1cnc(NC2CCCCC2)nc1",
    "C#Cc1ccccc1.Ic1ccccc1>>C(#Cc1ccccc1)c1ccccc1",
)


def masked_tokens(tokenizer):
    """Each reaction four times, with every fourth token masked, so that each is masked once."""
    data = []
    for reaction in REACTIONS:
        tokens = tokenizer(reaction, return_tensors="pt")["input_ids"].repeat(4, 1)
        hidden = torch.arange(tokens.shape[1]) % 4 == torch.arange(4)[:, None]
        hidden[:, 0] = hidden[:, -1] = False
        data.append(
            {
                "input_ids": tokens.masked_fill(hidden, tokenizer.mask_token_id),
                "labels": tokens.masked_fill(~hidden, -100),
            }
        )
    return data


def test_rxnmapper_needs_heads_5_and_2_and_not_head_6():
    folder = assets.fetch("rxnmapper")
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    data = masked_tokens(transformers.AutoTokenizer.from_pretrained(folder))
    gated, loss = hk.attach(model), hk.make_objective("cross_entropy")
    rises = torch.zeros(8)
    with torch.no_grad():
        for batch in data:
            dense = loss(gated(batch), batch)
            for head in range(8):
                open_heads = torch.ones(12, 8)
                open_heads[:, head] = 0
                rises[head] += (loss(gated(batch, open_heads), batch) - dense).sum()
    order = rises.argsort(descending=True).tolist()
    assert {5, 2} <= set(order[:3]), order
    assert order[-1] == 6, order


def test_scores_of_single_layers_add_up_to_the_same_picture():
    folder = assets.fetch("rxnmapper")
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    data = masked_tokens(transformers.AutoTokenizer.from_pretrained(folder))[::4]
    hk.attach(model)
    by_head = hk.score(model, data, "ablation", bootstrap=0).values.mean(0)
    assert by_head.argmax() == 5 or by_head.argmax() == 2
    assert by_head[6] == pytest.approx(0, abs=0.02)
