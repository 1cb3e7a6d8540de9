"""Running inputs under a budget, an audit and a file of records."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import headkit
from headkit import _C
from headkit.cli.inputs import Prepared
from headkit.cli.job import rounded

UNITS = {"heads": "heads", "flops": "flops", "ms": "milliseconds", "joules": "joules"}
GRID_STEPS = 32


@dataclass(frozen=True)
class Governing:
    """The options of ``run`` beyond the policy.

    Attributes:
        unit: of the budget, a key of UNITS; None = no budget.
        target: mean of an input; of FLOPs a share of the whole encoder's.
        records: file that the decision records are appended to; None = none.
        audit: share of inputs that also run in full; 0 = none.
    """

    unit: str | None = None
    target: float = 0
    records: Path | None = None
    audit: float = 0

    @staticmethod
    def read(budget: str | None, records: Path | None, audit: float) -> "Governing":
        """Read the options.

        Raises:
            ValueError: for a budget that is not UNIT:NUMBER, or a share outside [0, 1].
        """
        if not 0 <= audit <= 1:
            raise ValueError(f"[run] expected a share of 0 to 1 as --audit; found {audit:g}")
        if budget is None:
            return Governing(records=records, audit=audit)
        unit, colon, number = budget.partition(":")
        try:
            target = float(number)
        except ValueError:
            target = 0.0
        if not colon or unit not in UNITS or not 0 < target < float("inf"):
            raise ValueError(
                "[run] expected --budget heads:NUMBER, flops:SHARE, ms:NUMBER or joules:NUMBER, "
                f"above 0; found {budget!r}"
            )
        return Governing(unit, target, records, audit)

    @property
    def asked(self) -> bool:
        """Whether there is anything to do."""
        return self.unit is not None or self.records is not None or self.audit > 0

    def runner(self, prepared: Prepared, first: dict[str, torch.Tensor]) -> "Governed":
        """What runs the batches.

        Args:
            first: the first of them, which says what the whole encoder costs.

        Raises:
            ValueError: if the task generates, or the policy has no knob or promise where one is
                needed.
            RuntimeError: for joules on a machine that does not tell them.
        """
        task, policy = prepared.task, prepared.policy
        if task.GENERATES:
            raise ValueError(
                "[run] expected a task with one output an input beside --budget, --records and "
                f"--audit; found {task.NAME}, which generates"
            )
        model = task.running(prepared.opened)
        calibration = getattr(policy, "calibration", None)
        promised = calibration if isinstance(calibration, _C.Calibration) else None
        if (self.unit is not None or self.audit > 0) and not isinstance(
            policy, _C.AdjustablePolicy
        ):
            raise ValueError(
                "[run] expected a policy with a lambda beside --budget and --audit (headkit fit "
                f"makes one); found {policy.name}"
            )
        if self.audit > 0 and promised is None:
            raise ValueError(
                "[run] expected a policy with a promise beside --audit (headkit fit --risk makes "
                f"one); found {policy.name}"
            )
        if self.unit is None and self.audit == 0:
            return Governed(self, model, policy, None, None, None, self._record_file())
        audit = controller = None
        if self.audit > 0:
            audit = _C.ShadowAudit(risk=promised.risk, share=self.audit, bound=promised.bound)
        if self.unit is not None:
            controller = self._controller(model, promised, first)
        records = self._record_file()
        runner = _C.PolicyRunner(
            policy,
            lambda_=0.0 if promised is None else policy.lambda_,
            controller=controller,
            audit=audit,
            audit_loss="flip" if promised is None else promised.loss,
            audit_bound=None if promised is None else promised.bound,
            records=records,
        )
        return Governed(self, model, policy, runner, controller, audit, records)

    def _record_file(self) -> _C.RecordFile | None:
        if self.records is None:
            return None
        self.records.parent.mkdir(parents=True, exist_ok=True)
        return _C.RecordFile(str(self.records))

    def _controller(
        self, model: _C.GatedModel, promised: _C.Calibration | None, first: dict[str, torch.Tensor]
    ) -> _C.BudgetController:
        unit, target = UNITS[self.unit], self.target
        if unit == "flops":
            target *= _dense_flops(model, first)
        if promised is not None and unit in ("heads", "flops"):
            return _C.BudgetController.for_calibration(promised, target, unit)
        grid = [1 - (1 - step / GRID_STEPS) ** 3 for step in range(GRID_STEPS + 1)]
        if promised is not None:
            return _C.BudgetController(
                target=target,
                unit=unit,
                grid=promised.grid,
                floor=promised.lambda_,
                start=promised.lambda_,
            )
        return _C.BudgetController(target=target, unit=unit, grid=grid, start=0.5)


@dataclass(frozen=True)
class Governed:
    """Runs batches and knows what came of it."""

    asked: Governing
    model: _C.GatedModel
    policy: _C.GatePolicy
    governor: _C.PolicyRunner | None
    controller: _C.BudgetController | None
    audit: _C.ShadowAudit | None
    records: _C.RecordFile | None

    def run(self, tensors: dict[str, torch.Tensor], places: list[int]) -> _C.PolicyRun:
        """One batch; ``places``: numbers of its inputs."""
        if self.governor is not None:
            ids = [str(place) for place in places]
            return self.governor.govern(self.model, tensors, ids).run
        result = headkit.run(self.model, tensors, self.policy, record=True)
        for line, place in zip(result.records.splitlines(), places, strict=True):
            record = json.loads(line)
            record["run_time"]["request_id"] = str(place)
            self.records.write(json.dumps(record) + "\n")
        return result

    def told(self) -> dict[str, Any]:
        """What ``run`` prints as JSON."""
        told: dict[str, Any] = {}
        if self.controller is not None:
            state = self.controller.state
            measured = state.measured
            if self.asked.unit == "flops":
                measured *= self.asked.target / self.controller.target
            told["budget"] = {
                "unit": self.asked.unit,
                "target": self.asked.target,
                "measured": rounded(measured),
                "lambda": rounded(state.lambda_),
                "unmet": state.unmet,
            }
        if self.audit is not None:
            state = self.audit.state
            told["audit"] = {
                "audited": state.audited,
                "mean_loss": rounded(state.mean_loss),
                "alarms": state.alarms,
                "action": state.action,
            }
        if self.records is not None:
            told["records"] = {"file": self.records.path, "written": self.records.written}
        return told


@torch.no_grad()
def _dense_flops(model: _C.GatedModel, batch: dict[str, torch.Tensor]) -> float:
    """FLOPs of the whole encoder for an example of the batch, on average."""
    result = headkit.run(model, batch, _C.MaskPolicy(model.heads()), record=True)
    dense = [
        json.loads(line)["budget"]["flops_dense"] for line in result.records.splitlines() if line
    ]
    return sum(dense) / len(dense)
