"""Decision records for pages, in the form of the schema, made from a seed."""

import math
import random

import torch

import headkit

HOSTILE = "</script><img src=x onerror=alert(1)>"


def units_of(texts):
    return [
        {"text": text, "special": text in ("[CLS]", "[SEP]"), "padding": False} for text in texts
    ]


def attention_of(generator, heads, tokens, special):
    """Coded attention of one layer."""
    scores = 2 * torch.randn(heads, tokens, tokens, generator=generator)
    coded = headkit.code_attention(scores.softmax(-1), sink=torch.tensor(special))
    return [
        {
            "encoding": one.encoding,
            "data": one.data,
            "kept_mass": [round(mass, 4) for mass in one.kept_mass],
            "sink_mass": [round(mass, 4) for mass in one.sink_mass],
            "received": [round(mass, 4) for mass in one.received],
            "value_norm": [round(1 + math.sin(n) / 2, 3) for n in range(tokens)],
        }
        for one in coded
    ]


def role_of(role, agrees=None, interval=None, assigned=False):
    name, _, variant = role.partition(":")
    return {
        "role": name,
        "variant": variant,
        "score": 0.7,
        "interval": interval,
        "null": [{"name": "uniform", "value": 0.1}, {"name": "shuffle", "value": 0.2}],
        "margin": 0.5,
        "sample": {"sequences": 60, "rows": 1200, "dropped": 0},
        "excluded_mass": 0.1,
        "threshold": 0.5,
        "assessed": True,
        "assigned": assigned,
        "agrees": agrees,
        "reason": "" if assigned else "below the threshold",
        "level": "L0",
    }


def explained(layers=4, heads=6, texts=None, units=None, seed=0, parts=12):
    """A record with every group filled."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    units = units or units_of(texts or ["[CLS]", "the", "film", "was", "superb", ".", "[SEP]"])
    tokens = len(units)
    special = [bool(unit["special"]) for unit in units]
    decisions, total, states = (
        [],
        0.0,
        ["on", "on", "off", "always_on", "on", "off", "on", "pruned"],
    )
    for layer in range(layers):
        coded = attention_of(generator, heads, tokens, special) if tokens else [None] * heads
        for head in range(heads):
            state = states[draw.randrange(len(states))]
            on = state in ("on", "always_on")
            values = [draw.gauss(0, 0.3) for _ in range(min(parts, tokens))]
            values.sort(key=abs, reverse=True)
            base, rest = 0.2, 0.05
            logit = base + rest + sum(values)
            effect = draw.gauss(0.1, 0.4)
            total += effect if on else 0
            scored = state in ("on", "off")
            role = ["previous_token", "induction", "delimiter", "syntax:nsubj"][draw.randrange(4)]
            decisions.append(
                {
                    "layer": layer,
                    "head": head,
                    "state": state,
                    "gate": 1.0 if on else 0.0,
                    "reason": "score" if scored else "fixed",
                    "logit": logit if scored else None,
                    "threshold": 0.4 if scored else None,
                    "margin": logit - 0.4 if scored else None,
                    "margin_std": (logit - 0.4) / 0.7 if scored else None,
                    "rank": 1 + draw.randrange(9) if scored else None,
                    "rivals": [{"layer": layer, "head": (head + 1) % heads, "logit": 0.39}]
                    if scored
                    else [],
                    "why": {
                        "reference": "calibration_mean",
                        "base": base,
                        "parts": [{"unit": n, "value": v} for n, v in enumerate(values)],
                        "rest": rest,
                        "residual": 0.0,
                        "flip": {
                            "removed": [0],
                            "count": 1,
                            "minimal": True,
                            "verified": True,
                        },
                        "control_share": 0.31,
                    }
                    if scored
                    else None,
                    "roles": {
                        "input": [role_of(role, agrees=True)],
                        "dataset": [
                            role_of(role, interval=[0.65, 0.75], assigned=draw.random() < 0.5)
                        ],
                    },
                    "effects": {
                        "write_norm": draw.random(),
                        "direct": effect * 0.8,
                        "gate_gradient": effect * 0.9,
                        "toggle": {
                            "ablation": "zero",
                            "frozen": effect,
                            "redecided": effect * 1.1,
                            "interval": [effect - 0.1, effect + 0.1],
                        },
                        "repair": effect * -0.2,
                        "flipped_gates": [],
                        "level": "L2",
                    },
                    "attention": coded[head],
                }
            )
    curve = [1 - math.exp(-k / 6) for k in range(1, 13)]
    return {
        "schema_version": "1.2",
        "library": {"name": "headkit", "version": "0.1.0", "isa": "avx2"},
        "model": {
            "name": "toy",
            "layers": layers,
            "heads": heads,
            "head_dim": 8,
            "weights_sha256": None,
            "modality": "text",
        },
        "input": {"id": 0, "sha256": "0" * 64, "length": tokens, "units": units},
        "output": {
            "metric": "margin",
            "target": "positive",
            "distractor": "negative",
            "value_selected": total + 0.5,
            "value_dense": total + 0.6,
        },
        "policy": {"name": "linear_gate", "threshold": 0.4, "reference": "calibration_mean"},
        "budget": {
            "active": sum(one["gate"] != 0 for one in decisions),
            "total": layers * heads,
            "flops_selected": 8.3e8,
            "flops_dense": 1e9,
            "risk_bound": 0.05,
        },
        "mode": "dynamic",
        "heads": decisions,
        "pairs": [
            {
                "a": {"layer": 0, "head": a},
                "b": {"layer": 1, "head": b},
                "index": "synergy",
                "value": draw.gauss(0, 0.1),
                "ablation": "zero",
                "interval": [-0.1, 0.1],
            }
            for a in range(3)
            for b in range(3)
        ],
        "trust": {
            "faithfulness": {
                "ablation": "zero",
                "k": list(range(1, 13)),
                "comprehensiveness": {
                    "values": curve,
                    "random": {
                        "lower": [0.2 * value for value in curve],
                        "upper": [0.7 * value for value in curve],
                    },
                    "inverse": [0.1 * value for value in curve],
                    "aopc": 0.61,
                },
            },
            "stability": None,
            "agreement": {"toggle and gate gradient": {"kendall": 0.71, "interval": [0.6, 0.8]}},
            "registry_version": "1",
            "warnings": [],
        },
        "not_computed": [
            "model.weights_sha256",
            {"field": "trust.stability", "reason": "one run was given"},
        ],
    }
