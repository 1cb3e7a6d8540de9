"""Scores by several processes, and after a kill, against those of one process that ran through."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import headkit as hk

PROCESSES = 3
METRICS = {
    "gate_gradient": {},
    "gate_gradient by batch": {"granularity": "batch"},
    "fisher": {},
    "kl_curvature": {"draws": 2},
    "ablation": {},
    "ablation by mean": {"replacement": "mean"},
    "ablation by resampling": {"replacement": "resample"},
    "all_but_one": {},
    "shapley": {"permutations": 2},
    "activation": {},
    "flap": {},
    "attention_entropy": {},
    "confidence": {},
    "hies": {},
    "greedy_gnorm": {"recompute": False},
    "weight_norm": {},
    "random": {},
}
RUN = """
import json, os, sys, time
import torch
import torch.distributed as dist
import headkit as hk
from tests.python import test_distributed as job

what, rank, size, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank,
                        world_size=size)
try:
    with hk.shared_work():
        found = getattr(job, what)(rank)
except (ValueError, RuntimeError) as error:
    found = {"type": type(error).__name__, "error": str(error)}
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(found, file)
"""


def model_of():
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=28, max_position_embeddings=40, num_labels=3,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    hk.attach(model)
    return model


def data_of(sizes=(3, 2, 4, 1, 2, 3, 2), seed=0):
    """Batches whose number no number of processes divides."""
    draw = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(60, (size, 7), generator=draw),
            "labels": torch.randint(3, (size,), generator=draw),
        }
        for size in sizes
    ]


def scored(name, data=None, **options):
    metric = name.split(" by ")[0]
    options = {"bootstrap": 20, **METRICS[name], **options}
    return json.loads(hk.score(model_of(), data or data_of(), metric, **options).to_json())


def all_scores(rank):
    return {name: scored(name) for name in METRICS}


def other_data(rank):
    return scored("ablation", data_of(seed=rank // 2))


def one_fails(rank):
    data = data_of()
    data[4]["labels"][0] = 99
    return scored("gate_gradient", data)


def one_dies(rank):
    def progress(done, total):
        if rank == 1 and done == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    return scored("gate_gradient", progress=progress)


def run_all(what, folder, size=PROCESSES):
    """What each process of a group found, by rank; None of one that died."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, what, str(rank), str(size), str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(size)
    ]
    for each in started:
        each.wait(timeout=300)
    files = [folder / f"{rank}.json" for rank in range(size)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


def close(found, expected):
    assert found["settings"] == expected["settings"]
    assert found["samples"] == expected["samples"]
    for name in ("values", "lower", "upper"):
        assert (found[name] is None) == (expected[name] is None)
        if found[name] is not None:
            ours, theirs = (torch.tensor(each[name]).double() for each in (found, expected))
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_scores_are_those_of_one_process(tmp_path):
    alone = {name: scored(name) for name in METRICS}
    for found in run_all("all_scores", tmp_path):
        assert set(found) == set(METRICS)
        for name in METRICS:
            close(found[name], alone[name])


def test_other_data_in_one_process_stop_all(tmp_path):
    for found in run_all("other_data", tmp_path):
        assert found["type"] == "ValueError"
        assert "[ablation] expected the same calls with the same data" in found["error"]


def test_an_error_in_one_process_stops_all(tmp_path):
    found = run_all("one_fails", tmp_path)
    assert "an error in process 1" in found[0]["error"] == found[2]["error"]
    assert "an error in process 1" not in found[1]["error"]


def test_a_process_that_dies_stops_all(tmp_path):
    found = run_all("one_dies", tmp_path)
    assert found[1] is None
    for rank in (0, 2):
        assert found[rank]["type"] == "RuntimeError"
        assert "[distributed] expected an answer of all 3 processes" in found[rank]["error"]


def test_it_takes_a_process_group():
    with (
        pytest.raises(RuntimeError, match=r"\[distributed\] expected torch.distributed.init"),
        hk.shared_work(),
    ):
        pass


@pytest.mark.parametrize("name", ["gate_gradient", "ablation by resampling", "hies", "shapley"])
def test_a_journal_goes_on_to_the_same_scores(tmp_path, name):
    journal = tmp_path / "journal"
    steps = []
    whole = scored(name, progress=lambda done, total: steps.append(done))
    for last in (2, 3, len(steps) - 1):
        seen = []

        def stop(done, total, last=last, seen=seen):
            seen.append(done)
            if len(seen) == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            scored(name, journal=journal, progress=stop)
    assert scored(name, journal=journal) == whole
    before = journal.read_bytes()
    assert scored(name, journal=journal) == whole and journal.read_bytes() == before


def journaled(path):
    hk.score(model_of(), data_of(sizes=(2,) * 40), "ablation", journal=path, bootstrap=0)


def test_kill_at_any_moment_leaves_a_journal_to_go_on_with(tmp_path):
    whole = hk.score(model_of(), data_of(sizes=(2,) * 40), "ablation", bootstrap=0)
    journal = tmp_path / "journal"
    script = f"from tests.python.test_distributed import journaled; journaled({str(journal)!r})"
    draw, sizes = torch.Generator().manual_seed(0), []
    for _ in range(3):
        running = subprocess.Popen([sys.executable, "-c", script])
        before = journal.stat().st_size if journal.exists() else 0
        while running.poll() is None and not (
            journal.exists() and journal.stat().st_size > before + 100
        ):
            time.sleep(0.001)
        time.sleep(float(torch.rand((), generator=draw)) * 0.02)
        running.send_signal(signal.SIGKILL)
        running.wait()
        sizes.append(journal.stat().st_size)
    assert sizes[0] > 0
    found = hk.score(model_of(), data_of(sizes=(2,) * 40), "ablation", journal=journal, bootstrap=0)
    assert found.values.equal(whole.values)


def test_a_journal_of_another_job_is_refused(tmp_path):
    journal = tmp_path / "journal"
    scored("ablation", journal=journal)
    kept = journal.read_bytes()
    with pytest.raises(ValueError, match=r"\[journal\] expected the journal of this job"):
        scored("ablation by mean", journal=journal)
    with pytest.raises(ValueError, match=r"\[ablation\] expected the data that the journal"):
        scored("ablation", data_of(seed=5), journal=journal)
    assert journal.read_bytes() == kept
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("mine")
    with pytest.raises(ValueError, match=r"\[journal\] expected a journal, or no file"):
        scored("ablation", journal=thesis)
    assert thesis.read_text() == "mine"
