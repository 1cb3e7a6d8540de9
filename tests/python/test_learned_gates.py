"""Gates that learn: modules, the plain loop, hardening and the Trainer callback."""

import copy
import json
import types

import pytest
import safetensors.torch
import torch
import transformers

import headkit as hk
from headkit.training import GATES_FILE, LearnGatesWhileTraining

from .tiny_trainer import tiny_trainer

KEEP = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [0, 1, 0, 0]])


@pytest.fixture
def planted(tiny):
    """A model without dropout and batches that it labels with the heads of KEEP alone."""
    model = tiny.make("Bert", "SequenceClassification")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    hk.attach(model)
    generator = torch.Generator().manual_seed(3)
    batches = []
    for _ in range(4):
        ids = torch.randint(3, 60, (16, 6), generator=generator)
        with torch.no_grad(), hk.gates(model, KEEP):
            labels = model(input_ids=ids).logits.argmax(1)
        batches.append({"input_ids": ids, "labels": labels})
    return model, batches


def loss_under(model, batches, gates):
    with torch.no_grad(), hk.gates(model, gates):
        return sum(model(**batch).loss.item() for batch in batches) / len(batches)


def test_gates_train_in_anybodys_loop(planted):
    model, batches = planted
    learned = hk.HardConcreteGates(3, 4, penalty=0.02)
    optimizer = torch.optim.Adam(learned.parameter_groups(0.1))
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        for batch in batches:
            with hk.gates(model, learned(16, generator)):
                loss = model(**batch).loss + learned.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            learned.after_step()
    assert int(learned.step) == 48
    assert 0 < hk.HeadMask(learned.hard().heads).count < 12
    assert torch.equal(learned.eval()().heads, learned.hard().heads)


def test_the_loop_finds_better_heads_than_others_of_the_same_number(planted):
    model, batches = planted
    before = copy.deepcopy(model.state_dict())
    learned = hk.SubsetGates(3, 4, keep=5, cooldown_steps=60)
    training = hk.train_gates(model, learned, batches, steps=80, learning_rate=0.3)
    assert len(training.loss) == len(training) == int(learned.step) == 80
    assert set(training.penalty) == {0.0}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    found = hk.harden(model, learned, batches)
    assert found.heads.count == 5
    assert found.hard_loss == pytest.approx(loss_under(model, batches, found.heads), abs=1e-5)
    generator = torch.Generator().manual_seed(1)
    others = []
    for _ in range(40):
        scores = torch.rand(3, 4, generator=generator)
        others.append(loss_under(model, batches, hk.hard_subset(scores, 5)))
    assert found.hard_loss < torch.tensor(others).quantile(0.2)
    report = json.loads(found.to_json())
    assert report["heads_kept"] == 5 and report["gates"]["keep"] == 5


def test_state_dicts_copies_and_dtypes(planted):
    learned = hk.HardConcreteGates(3, 4)
    with torch.no_grad():
        learned.log_alpha.copy_(torch.linspace(-3, 3, 12).reshape(3, 4))
    other = hk.HardConcreteGates(3, 4)
    other.load_state_dict(learned.state_dict())
    assert torch.equal(other.hard().heads, learned.hard().heads)
    assert torch.equal(copy.deepcopy(learned).double().soft().heads > 0, learned.soft().heads > 0)
    with pytest.raises(ValueError, match="learned_gates"):
        copy.deepcopy(learned).half().soft()
    with pytest.raises(ValueError, match="penalty"):
        hk.HardConcreteGates(3, 4, penalty=-1)
    with pytest.raises(ValueError, match="from 0 to 12"):
        hk.SubsetGates(3, 4, keep=13)
    with pytest.raises(ValueError, match="learned gates"):
        hk.train_gates(planted[0], torch.nn.Linear(2, 2), planted[1], steps=1)


class Rows(torch.utils.data.Dataset):
    def __init__(self, batches):
        self.rows = [
            {name: value[i] for name, value in batch.items()}
            for batch in batches
            for i in range(len(batch["labels"]))
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        return self.rows[place]


def trainer(model, folder, batches, callback, **options):
    options = {"per_device_train_batch_size": 16, "callbacks": [callback], **options}
    return tiny_trainer(model, folder, Rows(batches), Rows(batches), **options)


def test_a_trainer_trains_gates_and_evaluates_without_noise(planted, tmp_path):
    model, batches = planted
    gates = hk.SubsetGates(3, 4, keep=5, cooldown_steps=6)
    callback = LearnGatesWhileTraining(gates, learning_rate=0.3)
    run = trainer(
        model, tmp_path, batches, callback, save_strategy="steps", save_steps=3, eval_strategy="no"
    )
    middle = EvaluateInTheMiddle(run, gates)
    run.add_callback(middle)
    run.train()
    assert int(gates.step) == 6 and callback.penalties == [0.0] * 6
    assert gates.w.abs().max() > 0
    state = safetensors.torch.load_file(tmp_path / "checkpoint-6" / GATES_FILE)
    other = hk.SubsetGates(3, 4, keep=5, cooldown_steps=6)
    other.load_state_dict(state)
    assert torch.equal(other.w, gates.w)
    with torch.no_grad():
        dense = model(**batches[0]).loss.item()
    assert dense == pytest.approx(loss_under(model, batches[:1], torch.ones(3, 4)), abs=1e-6)
    model.eval().load_state_dict(middle.weights)
    assert middle.loss == pytest.approx(loss_under(model, batches, middle.hard), abs=1e-5)


@pytest.mark.parametrize("kind", ["hard_concrete", "fixed_target"])
def test_gates_go_on_bit_for_bit_from_a_checkpoint(planted, tmp_path, kind):
    model, batches = planted
    original = copy.deepcopy(model)

    def begun():
        if kind == "hard_concrete":
            gates = hk.HardConcreteGates(3, 4, penalty=0.05)
        else:
            gates = hk.FixedTargetGates(hk.attach(model).layout(), heads=5, ramp_steps=6)
        return gates, LearnGatesWhileTraining(gates, seed=3)

    gates, callback = begun()
    saving = {"save_strategy": "steps", "save_steps": 3}
    trainer(model, tmp_path / "whole", batches, callback, **saving).train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    resumed, going_on = begun()
    rest = trainer(original, tmp_path / "rest", batches, going_on)
    with pytest.raises(ValueError, match=r"gates of step 3.*found those of step 0"):
        rest.train(resume_from_checkpoint=str(checkpoint))
    going_on.resume(checkpoint)
    rest.train(resume_from_checkpoint=str(checkpoint))
    assert int(resumed.step) == 6 and going_on.penalties == callback.penalties
    for name, value in gates.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    for found, expected in zip(original.parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected)
    other = LearnGatesWhileTraining(hk.HardConcreteGates(3, 5))
    with pytest.raises(ValueError, match="expected gates with tensors"):
        other.resume(checkpoint)
    with pytest.raises(FileNotFoundError):
        other.resume(tmp_path)


class EvaluateInTheMiddle(transformers.TrainerCallback):
    def __init__(self, run, gates):
        self.run, self.gates = run, gates

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 4:
            self.loss = self.run.evaluate()["eval_loss"]
            self.hard = self.gates.hard()
            self.weights = copy.deepcopy(model.state_dict())


def test_the_callback_gives_the_gradient_of_loss_plus_penalty(planted, tmp_path):
    model, batches = planted
    plain = copy.deepcopy(model)
    gates = hk.HardConcreteGates(3, 4, penalty=0.5)
    callback = LearnGatesWhileTraining(gates, learning_rate=0.1, max_norm=0.0, seed=4)
    options = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}
    trainer(model, tmp_path, batches[:1], callback, **options, lr_scheduler_type="constant").train()

    learned = hk.HardConcreteGates(3, 4, penalty=0.5)
    optimizer = torch.optim.Adam(learned.parameter_groups(0.1))
    weights = torch.optim.SGD(plain.parameters(), 0.05)
    generator = torch.Generator().manual_seed(4)
    plain.train()
    for _ in range(2):
        with hk.gates(plain, learned(16, generator)):
            (plain(**batches[0]).loss + learned.penalty()).backward()
        for one in (optimizer, weights):
            one.step()
            one.zero_grad()
        learned.after_step()
    torch.testing.assert_close(gates.log_alpha, learned.log_alpha, rtol=0, atol=1e-5)
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_callback_refuses_what_it_cannot_do(planted, tmp_path, tiny):
    model, batches = planted
    with pytest.raises(ValueError, match="learned gates"):
        LearnGatesWhileTraining(torch.nn.Linear(2, 2))
    callback = LearnGatesWhileTraining(hk.SubsetGates(3, 4, keep=5))
    with pytest.raises(ValueError, match="fp16"):
        half = types.SimpleNamespace(world_size=1, n_gpu=0, fp16=True)
        callback.on_train_begin(half, None, None, model=model)
    plain = tiny.make("Bert", "SequenceClassification")
    with pytest.raises(ValueError, match="attached"):
        trainer(plain, tmp_path, batches, callback).train()


def test_a_training_that_failed_leaves_no_second_gates(planted, tmp_path):
    model, batches = planted
    hooks = len(model._forward_pre_hooks)
    callback = LearnGatesWhileTraining(hk.SubsetGates(3, 4, keep=5))

    class Fail(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("lost")

    failing = trainer(model, tmp_path, batches, callback, max_steps=1)
    failing.add_callback(Fail())
    with pytest.raises(RuntimeError, match="lost"):
        failing.train()
    assert len(model._forward_pre_hooks) == hooks + 1
    trainer(model, tmp_path, batches, callback, max_steps=1).train()
    assert len(model._forward_pre_hooks) == hooks


def test_fixed_targets_train_in_anybodys_loop(planted):
    model, batches = planted
    gates = hk.FixedTargetGates(hk.attach(model).layout(), heads=5, ramp_steps=45)
    optimizer = torch.optim.Adam(gates.parameter_groups(0.2))
    assert [group.get("maximize", False) for group in optimizer.param_groups] == [False, True]
    generator = torch.Generator().manual_seed(0)
    for _ in range(15):
        for batch in batches:
            with hk.gates(model, gates(16, generator)):
                loss = model(**batch).loss + gates.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            gates.after_step()
    report = json.loads(gates.describe())["heads"]
    assert report["target"] == 5 and abs(report["expected_open"] - 5) < 2
    assert gates.hard().heads.sum() == 5
    assert torch.equal(copy.deepcopy(gates).hard().heads, gates.hard().heads)


def test_cofi_prunes_neurons_and_blocks_for_real(planted):
    model, batches = planted
    pruning = hk.prune(
        model, keep=0.5, method="cofi", data=batches, steps=120, learning_rate=0.2, seed=1
    )
    report = pruning.details["hardening"]["gates"]
    assert report["expected_sparsity"] == pytest.approx(0.5, abs=0.05)
    assert report["hard_sparsity"] == pytest.approx(0.5, abs=0.1)
    assert pruning.gates.neurons.shape == (3, 28)
    with torch.no_grad(), hk.gates(model, pruning.all_gates()):
        expected = model(**batches[0]).logits
    before = sum(value.numel() for value in model.parameters())
    hk.apply(model, pruning)
    assert sum(value.numel() for value in model.parameters()) < before
    with torch.no_grad():
        torch.testing.assert_close(model(**batches[0]).logits, expected, rtol=0, atol=1e-4)


def test_distillation_from_a_teacher_while_weights_train(planted):
    model, batches = planted
    teacher = copy.deepcopy(model)
    before = copy.deepcopy(teacher.state_dict())
    gates = hk.CofiGates(hk.attach(model).layout(), target_sparsity=0.3)
    distillation = hk.LayerDistillation(24, [1, 2, 3])
    dense = distillation.loss(hk.attach(model), hk.attach(teacher), batches[0], hk.GateSet())
    assert dense.item() == pytest.approx(0, abs=1e-6)
    options = {"steps": 5, "weight_learning_rate": 1e-3, "distillation": distillation}
    with pytest.raises(ValueError, match="teacher"):
        hk.train_gates(model, gates, batches, **options)
    training = hk.train_gates(model, gates, batches, teacher=teacher, **options)
    assert len(training) == 5 and all(loss >= 0 for loss in training.loss)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not torch.equal(distillation.projection, torch.eye(24))
    changed = (not torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert any(changed)


@pytest.mark.parametrize("method", ["voita", "subset", "fixed_target"])
def test_methods_of_prune(planted, method):
    model, batches = planted
    mask = hk.prune(model, keep=0.25, method=method, data=batches, steps=4)
    assert isinstance(mask, hk.HeadMask) and mask.count == 3
    assert "steps" in hk.pruners()[method]["settings"]
    with pytest.raises(ValueError, match="stepps"):
        hk.prune(model, keep=0.25, method=method, data=batches, stepps=4)
