"""A transformers.Trainer trains attached, pruned and gated models, and prunes while it trains."""

import copy
import json
import pathlib
import runpy

import pytest
import safetensors.torch
import torch

import headkit as hk
from headkit.training import HEADS_FILE, PruneWhileTraining

from .tiny_trainer import tiny_trainer

MASK = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])


class Sentences(torch.utils.data.Dataset):
    """Token ids whose label is whether the first one is even."""

    def __init__(self, count=32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(3, 60, (count, 6), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, place):
        ids = self.ids[place]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": (ids[0] % 2).long(),
        }


def batches(data, size=8):
    return list(torch.utils.data.DataLoader(data, batch_size=size))


def trainer(model, folder, steps=6, callbacks=(), **options):
    options = {"max_steps": steps, "callbacks": callbacks, **options}
    return tiny_trainer(model, folder, Sentences(), Sentences(16, seed=1), **options)


@pytest.fixture
def model(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def test_training_a_masked_model_is_training_one_with_masked_heads(model, tiny, tmp_path):
    plain = copy.deepcopy(model).double()
    attached = copy.deepcopy(plain)
    hk.attach(attached)
    sgd = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}
    with hk.gates(attached, MASK.double()):
        trainer(attached, tmp_path / "a", 3, **sgd).train()
    with tiny.oracle(plain, MASK.double()):
        trainer(plain, tmp_path / "b", 3, **sgd).train()
    for found, expected in zip(attached.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-11, rtol=0)


def test_a_pruned_model_trains_and_its_checkpoints_are_plain(model, tmp_path):
    names = set(model.state_dict())
    hk.attach(model)
    hk.apply(model, MASK)
    run = trainer(model, tmp_path, 20)
    before = run.evaluate()["eval_loss"]
    trained = run.train().training_loss
    assert trained < before
    run.save_model(tmp_path / "last")
    saved = safetensors.torch.load_file(tmp_path / "last" / "model.safetensors")
    assert set(saved) == names
    assert saved["bert.encoder.layer.0.attention.self.query.weight"].shape == (18, 24)


def test_a_run_resumes_where_it_stopped(model, tmp_path):
    hk.attach(model)
    hk.apply(model, MASK)
    start = copy.deepcopy(model)
    saving = {"save_strategy": "steps", "save_steps": 3}
    trainer(model, tmp_path / "whole", 6, **saving).train()
    again = copy.deepcopy(start)
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    trainer(again, tmp_path / "rest", 6).train(resume_from_checkpoint=str(checkpoint))
    for found, expected in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)
    assert not torch.equal(next(again.parameters()), next(start.parameters()))


def test_the_best_model_comes_back(model, tmp_path):
    hk.attach(model)
    hk.apply(model, MASK)
    each = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    run = trainer(
        model,
        tmp_path,
        6,
        load_best_model_at_end=True,
        learning_rate=1.0,  # far too large, so that later steps are worse
        lr_scheduler_type="constant",
        **each,
    )
    run.train()
    losses = [row["eval_loss"] for row in run.state.log_history if "eval_loss" in row]
    assert len(losses) == 3
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)
    assert hk.attach(model).heads() == hk.HeadMask(MASK)


def test_pruning_while_training(model, tmp_path):
    gated = hk.attach(model)
    prune = PruneWhileTraining({2: 0.75, 4: 0.5}, batches(Sentences()))
    run = trainer(model, tmp_path, 6, [prune], save_strategy="steps", save_steps=3)
    run.train()
    assert [mask.count for mask in prune.done.values()] == [9, 6]
    assert list(prune.done) == [2, 4] and gated.heads() == prune.done[4]
    held = {id(one) for group in run.optimizer.param_groups for one in group["params"]}
    assert held == {id(one) for one in model.parameters()}
    assert model.training and all(state["step"] == 6 for state in run.optimizer.state.values()), (
        "no state was begun anew"
    )

    folder = tmp_path / "checkpoint-3"
    mask = hk.HeadMask.from_json((folder / HEADS_FILE).read_text())
    assert mask == prune.done[2]
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 3


def test_resuming_after_pruning(model, tmp_path):
    original = copy.deepcopy(model)
    hk.attach(model)
    callback = PruneWhileTraining({2: 0.5}, batches(Sentences()))
    saving = {"save_strategy": "steps", "save_steps": 3}
    trainer(model, tmp_path / "whole", 6, [callback], **saving).train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    hk.attach(original)
    hk.apply(original, hk.HeadMask.from_json((checkpoint / HEADS_FILE).read_text()))
    trainer(original, tmp_path / "rest", 6).train(resume_from_checkpoint=str(checkpoint))
    for found, expected in zip(original.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_what_cannot_be_pruned_while_training(model, tmp_path):
    data = batches(Sentences())
    for schedule in ({}, {1: 0.5, 2: 0.75}, {1: 2.0}):
        with pytest.raises(ValueError, match="schedule"):
            PruneWhileTraining(schedule, data)
    with pytest.raises(ValueError, match="attached"):
        trainer(model, tmp_path, 2, [PruneWhileTraining({1: 0.5}, data)]).train()
    hk.attach(model)
    best = {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps"}
    best |= {"save_steps": 2, "eval_steps": 2}
    with pytest.raises(ValueError, match="load_best_model_at_end"):
        trainer(model, tmp_path, 2, [PruneWhileTraining({1: 0.5}, data)], **best).train()
    adafactor = PruneWhileTraining({1: 0.5}, data)
    with pytest.raises(ValueError, match="Adafactor"):
        trainer(model, tmp_path, 2, [adafactor], optim="adafactor").train()
    assert hk.attach(model).heads().count == 12


def test_the_example_recovers_what_pruning_cost():
    examples = pathlib.Path(__file__).resolve().parents[2] / "examples" / "python"
    losses = runpy.run_path(str(examples / "fine_tune_pruned.py"))["main"]()
    assert losses["pruned, trained on"] < losses["pruned"]
