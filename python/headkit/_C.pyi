"""The compiled core of headkit. `make stubs` wrote this, with torch 2.15: do not edit."""

from __future__ import annotations

import builtins
import collections.abc
import os
import pathlib
import typing

import torch

__all__: list[str] = [
    "RECORD_SCHEMA",
    "ROLE_REGISTRY",
    "AdjustablePolicy",
    "Agreement",
    "Aopc",
    "AttentionBlockCall",
    "AttentionWeights",
    "AuditState",
    "AuditToggle",
    "BackendChoice",
    "BootstrapInterval",
    "BudgetController",
    "BudgetState",
    "CalibratedPolicy",
    "Calibration",
    "CalibrationBucket",
    "CausalGating",
    "CodedAttention",
    "CofiGatesCore",
    "ConformalResult",
    "CorpusCorrelation",
    "CorpusHead",
    "CorpusReport",
    "CorpusView",
    "DataSource",
    "DecisionRecord",
    "DependencySentence",
    "Encoder",
    "EnergyMeter",
    "Escalation",
    "ExplanationStability",
    "FaithfulInteractions",
    "Faithfulness",
    "FaithfulnessCurve",
    "FeaturePart",
    "FeatureParts",
    "FeedForwardWeights",
    "FisherInformation",
    "FittedProbe",
    "FixedTargetGatesCore",
    "GateCut",
    "GateDecomposition",
    "GateFlip",
    "GateInput",
    "GatePolicy",
    "GateSet",
    "GateTraining",
    "GatedModel",
    "GatedUnits",
    "GovernedRun",
    "HardConcreteGatesCore",
    "HardenedGates",
    "HeadDecision",
    "HeadEffects",
    "HeadId",
    "HeadIsotonic",
    "HeadLayout",
    "HeadMask",
    "HeadScores",
    "HiesTuning",
    "HysteresisGate",
    "InputEffects",
    "InputGateReport",
    "InputUnit",
    "IsotonicMap",
    "JournaledWalks",
    "Ladder",
    "LadderTrace",
    "LadderTraining",
    "LatencyModel",
    "LatencyTables",
    "LayerDistillation",
    "LayerGate",
    "LearnThenTestResult",
    "LearnedGatesCore",
    "LinearGate",
    "LinearGateReport",
    "LinearProbe",
    "LogitPart",
    "MaskPolicy",
    "McNemarTest",
    "MetricAgreement",
    "ModelFolder",
    "ModelState",
    "Objective",
    "OffsetBaseline",
    "OodScore",
    "OutputMetric",
    "PairEffect",
    "PairMatrix",
    "PairStatistics",
    "PatchGrid",
    "PolicyRun",
    "PolicyRunner",
    "PolicyState",
    "PolicyTrace",
    "ProbeSignals",
    "RandomisationCheck",
    "RankGap",
    "RankStability",
    "Reactivation",
    "ReactivationReport",
    "RecordFile",
    "RivalHead",
    "RoleMeasure",
    "RoleNull",
    "RoleOptions",
    "RoleScore",
    "RoleTable",
    "Rung",
    "RungTrainer",
    "SampleAttention",
    "SavedEncoder",
    "SecondLook",
    "SelectionStability",
    "SequenceSyntax",
    "ShadowAudit",
    "SharedWalks",
    "Simulatability",
    "Stability",
    "StaticPruning",
    "StaticStage",
    "Sublayers",
    "SubsetGatesCore",
    "SummaryLine",
    "Taps",
    "ToggleEffect",
    "TokenRemoval",
    "TopKOverlap",
    "UnitCosts",
    "WorkList",
    "active_isa",
    "align_words",
    "apply_pruning",
    "attention_backend",
    "attention_block_call",
    "attention_flops",
    "available_backends",
    "available_isas",
    "binomial_half_width",
    "bootstrap_mean",
    "calibrate",
    "calibrate_trace",
    "causal_head_gating",
    "check_randomisation",
    "code_attention",
    "conformal_risk_control",
    "conformal_samples_needed",
    "data_hash",
    "decompose_gate",
    "describe_encoder",
    "describe_model",
    "effect_faithfulness",
    "encoder_flops",
    "explain_decisions",
    "explanation_stability",
    "faithful_interactions",
    "faithfulness",
    "feed_forward_backend",
    "feed_forward_flops",
    "find_audio_roles",
    "find_gold_alignment",
    "find_image_roles",
    "find_syntactic_roles",
    "fisher_information",
    "fit_hybrid",
    "fit_layer_gate",
    "fit_linear_gate",
    "fit_linear_probes",
    "fit_reactivation",
    "fit_second_look",
    "for_each_attention",
    "gate_simulatability",
    "gated_attention",
    "gated_feed_forward",
    "gini",
    "hard_concrete_closed_probability",
    "hard_concrete_full_probability",
    "hard_concrete_open_probability",
    "hard_concrete_sample",
    "hard_concrete_test_gate",
    "hard_subset",
    "harden",
    "head_contexts",
    "head_roles",
    "head_usage",
    "heads_for_share",
    "holm",
    "html_report",
    "input_attention",
    "input_importance",
    "input_roles",
    "integer_score_norm",
    "join_gates",
    "kendall_tau",
    "learn_then_test",
    "learn_then_test_samples_needed",
    "learned_gate_scores",
    "load_encoder",
    "logit_spread",
    "make_ladder",
    "make_objective",
    "make_output_metric",
    "make_work_list",
    "mask_stability",
    "mcnemar",
    "mean_block_outputs",
    "mean_effects",
    "mean_head_outputs",
    "mean_neuron_activations",
    "measure_effects",
    "measure_latency",
    "metric_agreement",
    "needed_units",
    "objective_names",
    "offset_baselines",
    "order_neurons",
    "output_confidence",
    "output_metric_names",
    "pair_statistics",
    "paired_bootstrap",
    "parse_conllu",
    "peak_flops",
    "pearson",
    "policies",
    "policy_from_json",
    "pooled_state",
    "prune",
    "prune_by_scores",
    "prune_top_fraction",
    "pruners",
    "rank_biased_overlap",
    "read_conllu",
    "read_decision_records",
    "read_model_folder",
    "read_safetensors",
    "reference_attention",
    "reference_feed_forward",
    "refresh_packed_weights",
    "relaxed_subset",
    "removal_order",
    "remove_heads",
    "remove_units",
    "report_picture",
    "restore_model",
    "role_registry",
    "run_policy",
    "rung_flops",
    "scalar_features",
    "score",
    "score_agreement",
    "scorers",
    "sentence_embedding",
    "shapley_interactions",
    "shapley_values",
    "shared_examples",
    "show_config",
    "slice_heads",
    "slice_neurons",
    "sort_neurons",
    "spearman",
    "static_layer_gate",
    "static_linear_gate",
    "static_stage",
    "summarise_record",
    "toggle_correlation",
    "top_k_overlap",
    "torch_version",
    "trace_policy",
    "train_gates",
    "train_input_gates",
    "train_ladder",
    "tune_hies",
    "two_proportion_z",
    "unit_macs",
    "unit_parameters",
    "with_sentence_embedding",
    "with_sentence_probe",
    "write_model_folder",
    "write_safetensors",
]

class HeadId:
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...
    def __init__(self, layer: int, head: int) -> None: ...
    def __iter__(self) -> collections.abc.Iterator: ...
    def __repr__(self) -> str: ...
    @property
    def head(self) -> int: ...
    @property
    def layer(self) -> int: ...

class HeadLayout:
    __hash__: typing.ClassVar[None] = None  # type: ignore[assignment]
    @staticmethod
    def from_json(text: str) -> HeadLayout: ...
    def __eq__(self, other: object) -> bool: ...
    def __getstate__(self) -> str: ...
    def __init__(
        self,
        layers: int,
        heads: int,
        head_dim: int,
        model_dim: int,
        feed_forward: int = 0,
        kv_heads: int | None = None,
    ) -> None: ...
    def __repr__(self) -> str: ...
    def __setstate__(self, arg0: str) -> None: ...
    def kv_heads_of(self, kept: collections.abc.Sequence[int]) -> list[int]: ...
    def kv_places_of(self, kept: collections.abc.Sequence[int]) -> list[int]: ...
    def to_json(self) -> str: ...
    @property
    def feed_forward(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def model_dim(self) -> int: ...
    @property
    def total_heads(self) -> int: ...

class HeadMask:
    __hash__: typing.ClassVar[None] = None  # type: ignore[assignment]
    @staticmethod
    def all(layers: int, heads: int) -> HeadMask: ...
    @staticmethod
    def from_json(text: str) -> HeadMask: ...
    def __eq__(self, other: object) -> bool: ...
    def __init__(self, keep: torch.Tensor) -> None: ...
    def __repr__(self) -> str: ...
    def contains(self, id: HeadId) -> bool: ...
    def intersect(self, other: HeadMask) -> HeadMask: ...
    def is_subset_of(self, other: HeadMask) -> bool: ...
    def layer_heads(self, layer: int) -> list[int]: ...
    def removed(self) -> list[HeadId]: ...
    def to_json(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def keep(self) -> torch.Tensor: ...
    @property
    def layers(self) -> int: ...

class HeadScores:
    @staticmethod
    def from_json(text: str) -> HeadScores: ...
    def __init__(
        self,
        values: torch.Tensor,
        *,
        metric: str = "imported",
        objective: str = "",
        samples: int = 0,
        seed: int = 0,
        lower: torch.Tensor | None = None,
        upper: torch.Tensor | None = None,
        confidence: float = 0.95,
        settings: str = "{}",
    ) -> None: ...
    def __repr__(self) -> str: ...
    def plot(self, path: typing.Any) -> None: ...
    def to_json(self) -> str: ...
    @property
    def confidence(self) -> float: ...
    @property
    def data_hash(self) -> str: ...
    @property
    def lower(self) -> torch.Tensor | None: ...
    @property
    def metric(self) -> str: ...
    @property
    def objective(self) -> str: ...
    @property
    def samples(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def settings(self) -> str: ...
    @property
    def upper(self) -> torch.Tensor | None: ...
    @property
    def values(self) -> torch.Tensor: ...

class GateSet:
    @staticmethod
    def from_json(text: str) -> GateSet: ...
    @staticmethod
    def from_mask(mask: HeadMask) -> GateSet: ...
    def __init__(
        self,
        heads: torch.Tensor | None = None,
        *,
        dropped_output: torch.Tensor | None = None,
        blocks: torch.Tensor | None = None,
        dropped_blocks: torch.Tensor | None = None,
        skip: bool = True,
        neurons: torch.Tensor | None = None,
        attention_sublayers: torch.Tensor | None = None,
        feed_forward_sublayers: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
    ) -> None: ...
    def check(self, batch: int, layers: int, heads: int) -> None: ...
    def layer_dropped_output(self, layer: int) -> torch.Tensor | None: ...
    def layer_gate(self, layer: int) -> torch.Tensor | None: ...
    def select_samples(self, index: torch.Tensor) -> GateSet: ...
    def to_json(self) -> str: ...
    @property
    def attention_sublayers(self) -> torch.Tensor | None: ...
    @property
    def blocks(self) -> torch.Tensor | None: ...
    @property
    def dropped_blocks(self) -> torch.Tensor | None: ...
    @property
    def dropped_output(self) -> torch.Tensor | None: ...
    @property
    def empty(self) -> bool: ...
    @property
    def feed_forward_sublayers(self) -> torch.Tensor | None: ...
    @property
    def heads(self) -> torch.Tensor | None: ...
    @property
    def hidden(self) -> torch.Tensor | None: ...
    @property
    def neurons(self) -> torch.Tensor | None: ...
    @property
    def skip(self) -> bool: ...

class WorkList:
    @staticmethod
    def from_json(text: str) -> WorkList: ...
    def __repr__(self) -> str: ...
    def to_json(self) -> str: ...
    def to_keep(self) -> torch.Tensor: ...
    @property
    def batch(self) -> int: ...
    @property
    def col_offset(self) -> list[int]: ...
    @property
    def head_index(self) -> list[int]: ...
    @property
    def heads(self) -> int: ...
    @property
    def pair_of(self) -> list[int]: ...
    @property
    def pairs(self) -> int: ...
    @property
    def row_offset(self) -> list[int]: ...
    @property
    def sample_index(self) -> list[int]: ...
    @property
    def scale(self) -> list[float]: ...

class UnitCosts:
    def total(self, heads: float, neurons: float) -> float: ...
    @property
    def fixed(self) -> float: ...
    @property
    def head(self) -> float: ...
    @property
    def neuron(self) -> float: ...

class AttentionWeights:
    k: torch.Tensor | None
    k_bias: torch.Tensor | None
    o: torch.Tensor | None
    o_bias: torch.Tensor | None
    q: torch.Tensor | None
    q_bias: torch.Tensor | None
    v: torch.Tensor | None
    v_bias: torch.Tensor | None
    def __init__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        o: torch.Tensor,
        *,
        q_bias: torch.Tensor | None = None,
        k_bias: torch.Tensor | None = None,
        v_bias: torch.Tensor | None = None,
        o_bias: torch.Tensor | None = None,
    ) -> None: ...

class BackendChoice:
    def __repr__(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def reason(self) -> str: ...

class PairStatistics:
    @property
    def contribution_norm(self) -> torch.Tensor: ...
    @property
    def entropy(self) -> torch.Tensor: ...
    @property
    def largest_weight(self) -> torch.Tensor: ...
    @property
    def log_sum_exp(self) -> torch.Tensor: ...

class FeedForwardWeights:
    inner: torch.Tensor | None
    inner_bias: torch.Tensor | None
    out: torch.Tensor | None
    out_bias: torch.Tensor | None
    up: torch.Tensor | None
    up_bias: torch.Tensor | None
    def __init__(
        self,
        inner: torch.Tensor,
        out: torch.Tensor,
        *,
        up: torch.Tensor | None = None,
        inner_bias: torch.Tensor | None = None,
        out_bias: torch.Tensor | None = None,
        up_bias: torch.Tensor | None = None,
    ) -> None: ...

class DataSource:
    def __init__(self, batches: typing.Any) -> None: ...
    def for_each(
        self, visit: collections.abc.Callable[[dict[str, torch.Tensor]], None] | None
    ) -> None: ...
    @property
    def size(self) -> int | None: ...

class ModelState:
    def __init__(
        self,
        hidden: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        batch: collections.abc.Mapping[str, torch.Tensor] = {},
        layer: int = 0,
        extra: typing.Any = None,
    ) -> None: ...
    @property
    def attention_mask(self) -> torch.Tensor | None: ...
    @property
    def batch(self) -> dict[str, torch.Tensor]: ...
    @property
    def extra(self) -> typing.Any: ...
    @property
    def hidden(self) -> torch.Tensor: ...
    @property
    def layer(self) -> int: ...

class AttentionBlockCall:
    pass

class Taps:
    def __init__(
        self,
        *,
        attention_inputs: bool = False,
        head_contexts: bool = False,
        attention_outputs: bool = False,
        feed_forward_inputs: bool = False,
        neuron_activations: bool = False,
        feed_forward_outputs: bool = False,
        attention_calls: bool = False,
    ) -> None: ...
    @property
    def attention_call(self) -> list[AttentionBlockCall]: ...
    @attention_call.setter
    def attention_call(self, arg0: collections.abc.Sequence[AttentionBlockCall]) -> None: ...
    @property
    def attention_calls(self) -> bool: ...
    @property
    def attention_input(self) -> list[torch.Tensor]: ...
    @attention_input.setter
    def attention_input(self, arg0: collections.abc.Sequence[torch.Tensor]) -> None: ...
    @property
    def attention_inputs(self) -> bool: ...
    @property
    def attention_output(self) -> list[torch.Tensor]: ...
    @attention_output.setter
    def attention_output(self, arg0: collections.abc.Sequence[torch.Tensor]) -> None: ...
    @property
    def attention_outputs(self) -> bool: ...
    @property
    def feed_forward_input(self) -> list[torch.Tensor]: ...
    @feed_forward_input.setter
    def feed_forward_input(self, arg0: collections.abc.Sequence[torch.Tensor]) -> None: ...
    @property
    def feed_forward_inputs(self) -> bool: ...
    @property
    def feed_forward_output(self) -> list[torch.Tensor]: ...
    @feed_forward_output.setter
    def feed_forward_output(self, arg0: collections.abc.Sequence[torch.Tensor]) -> None: ...
    @property
    def feed_forward_outputs(self) -> bool: ...
    @property
    def head_context(self) -> list[torch.Tensor]: ...
    @head_context.setter
    def head_context(self, arg0: collections.abc.Sequence[torch.Tensor]) -> None: ...
    @property
    def head_contexts(self) -> bool: ...
    @property
    def neuron_activations(self) -> bool: ...
    @property
    def neurons(self) -> list[torch.Tensor]: ...
    @neurons.setter
    def neurons(self, arg0: collections.abc.Sequence[torch.Tensor]) -> None: ...
    @property
    def valid(self) -> list[torch.Tensor | None]: ...
    @valid.setter
    def valid(self, arg1: collections.abc.Sequence[torch.Tensor | None]) -> None: ...

class GatedUnits:
    def __init__(
        self,
        *,
        neurons: bool = False,
        attention_sublayers: bool = False,
        feed_forward_sublayers: bool = False,
        hidden: bool = False,
    ) -> None: ...
    @property
    def attention_sublayers(self) -> bool: ...
    @property
    def feed_forward_sublayers(self) -> bool: ...
    @property
    def hidden(self) -> bool: ...
    @property
    def neurons(self) -> bool: ...

class Sublayers:
    __hash__: typing.ClassVar[None] = None  # type: ignore[assignment]
    def __eq__(self, other: object) -> bool: ...
    def __init__(
        self,
        attention: collections.abc.Sequence[bool],
        feed_forward: collections.abc.Sequence[bool] = [],
    ) -> None: ...
    @property
    def attention(self) -> list[bool]: ...
    @property
    def feed_forward(self) -> list[bool]: ...

class GatedModel:
    def __call__(
        self,
        batch: collections.abc.Mapping[str, torch.Tensor],
        gates: GateSet | HeadMask | torch.Tensor = ...,
        taps: Taps | None = None,
    ) -> torch.Tensor: ...
    def __init__(self) -> None: ...
    def attention(self, layer: int) -> AttentionWeights: ...
    def check(self, gates: GateSet | HeadMask | torch.Tensor, batch: int = -1) -> None: ...
    def embed(self, batch: collections.abc.Mapping[str, torch.Tensor]) -> ModelState: ...
    def feed_forward(self, layer: int) -> FeedForwardWeights: ...
    def fingerprint(self) -> str: ...
    def gated_units(self) -> GatedUnits: ...
    def head(self, state: ModelState) -> torch.Tensor: ...
    def heads(self) -> HeadMask: ...
    def is_whole(self) -> bool: ...
    def layout(self) -> HeadLayout: ...
    def neurons(self) -> torch.Tensor: ...
    def parameters(self) -> list[tuple[str, torch.Tensor]]: ...
    def replace_attention(
        self, layer: int, weights: AttentionWeights, kept: collections.abc.Sequence[int]
    ) -> None: ...
    def replace_feed_forward(
        self, layer: int, weights: FeedForwardWeights, kept: collections.abc.Sequence[int]
    ) -> None: ...
    def run(
        self,
        state: ModelState,
        first: int,
        last: int,
        gates: GateSet | HeadMask | torch.Tensor = ...,
        taps: Taps | None = None,
    ) -> ModelState: ...
    def select(self, state: ModelState, index: torch.Tensor) -> ModelState: ...
    def set_sublayers(self, open: Sublayers) -> None: ...
    def sublayers(self) -> Sublayers: ...

class Objective:
    def __call__(
        self,
        output: torch.Tensor,
        batch: collections.abc.Mapping[str, torch.Tensor] = {},
        dense: torch.Tensor | None = None,
    ) -> torch.Tensor: ...
    @property
    def name(self) -> str: ...
    @property
    def needs_dense(self) -> bool: ...
    @property
    def stationary_at_dense(self) -> bool: ...

class SharedWalks:
    def __init__(self, group_name: str, device: torch.device) -> None: ...
    def close(self) -> None: ...

class JournaledWalks:
    def __init__(self, path: str, identity: str) -> None: ...
    def close(self) -> None: ...

class FisherInformation:
    @property
    def head_blocks(self) -> torch.Tensor: ...
    @property
    def head_gradients(self) -> torch.Tensor | None: ...
    @property
    def heads(self) -> torch.Tensor: ...
    @property
    def neuron_gradients(self) -> torch.Tensor | None: ...
    @property
    def neurons(self) -> torch.Tensor | None: ...
    @property
    def samples(self) -> int: ...

class TopKOverlap:
    @property
    def chance(self) -> float: ...
    @property
    def jaccard(self) -> float: ...
    @property
    def kuncheva(self) -> float: ...
    @property
    def overlap(self) -> float: ...
    @property
    def p_value(self) -> float: ...
    @property
    def top_a(self) -> list[int]: ...
    @property
    def top_b(self) -> list[int]: ...

class PairMatrix:
    @property
    def lower(self) -> torch.Tensor | None: ...
    @property
    def upper(self) -> torch.Tensor | None: ...
    @property
    def values(self) -> torch.Tensor: ...

class Agreement:
    def __repr__(self) -> str: ...
    def to_json(self) -> str: ...
    @property
    def between_runs(self) -> torch.Tensor: ...
    @property
    def chance(self) -> float: ...
    @property
    def confidence(self) -> float: ...
    @property
    def kendall(self) -> PairMatrix: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def over_examples(self) -> bool: ...
    @property
    def overlap(self) -> PairMatrix: ...
    @property
    def pearson(self) -> PairMatrix: ...
    @property
    def rank_spread(self) -> torch.Tensor: ...
    @property
    def runs(self) -> int: ...
    @property
    def spearman(self) -> PairMatrix: ...
    @property
    def top_k(self) -> int: ...

class Stability:
    def __repr__(self) -> str: ...
    def to_json(self) -> str: ...
    @property
    def confidence(self) -> float: ...
    @property
    def fleiss_kappa(self) -> float: ...
    @property
    def frequency(self) -> torch.Tensor: ...
    @property
    def lower(self) -> float: ...
    @property
    def masks(self) -> int: ...
    @property
    def mean_kept(self) -> float: ...
    @property
    def mean_kuncheva(self) -> float: ...
    @property
    def nogueira(self) -> float: ...
    @property
    def upper(self) -> float: ...
    @property
    def variance(self) -> float: ...

class BootstrapInterval:
    def __repr__(self) -> str: ...
    @property
    def lower(self) -> float: ...
    @property
    def mean(self) -> float: ...
    @property
    def p_value(self) -> float: ...
    @property
    def standard_error(self) -> float: ...
    @property
    def upper(self) -> float: ...

class McNemarTest:
    @property
    def accuracy_difference(self) -> float: ...
    @property
    def chi_square(self) -> float: ...
    @property
    def chi_square_corrected(self) -> float: ...
    @property
    def exact_p(self) -> float: ...
    @property
    def examples(self) -> int: ...
    @property
    def mid_p(self) -> float: ...
    @property
    def only_a(self) -> int: ...
    @property
    def only_b(self) -> int: ...
    @property
    def standard_error(self) -> float: ...

class PolicyState:
    record: bool
    def __init__(self, *, record: bool = False, layout: HeadLayout | None = None) -> None: ...
    @property
    def next_input(self) -> int: ...
    @next_input.setter
    def next_input(self, arg0: int) -> None: ...
    @property
    def records(self) -> str: ...
    @records.setter
    def records(self, arg1: str) -> None: ...

class GateInput:
    def __init__(
        self, layer: int, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> None: ...
    @property
    def attention_mask(self) -> torch.Tensor | None: ...
    @property
    def hidden(self) -> torch.Tensor: ...
    @property
    def layer(self) -> int: ...

class GatePolicy:
    @staticmethod
    def from_json(text: str) -> GatePolicy: ...
    def __repr__(self) -> str: ...
    def check_model(self, model: GatedModel) -> None: ...
    @typing.overload
    def decide(self, input: GateInput, state: PolicyState) -> GateSet: ...
    @typing.overload
    def decide(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        state: PolicyState | None = None,
    ) -> GateSet: ...
    def decide_parts(
        self,
        layer: int,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        state: PolicyState | None = None,
        model: GatedModel | None = None,
    ) -> list[tuple[torch.Tensor, GateSet]]: ...
    def start(self) -> PolicyState: ...
    def to_json(self) -> str: ...
    @property
    def decision_layers(self) -> list[int]: ...
    @property
    def name(self) -> str: ...

class AdjustablePolicy(GatePolicy):
    def at(self, lambda_: float) -> GatePolicy: ...
    def sweep(
        self,
        model: GatedModel,
        batch: collections.abc.Mapping[str, torch.Tensor],
        lambdas: collections.abc.Sequence[float],
    ) -> list[PolicyRun]: ...

class MaskPolicy(GatePolicy):
    def __init__(self, mask: HeadMask, *, dropped_output: torch.Tensor | None = None) -> None: ...
    @property
    def dropped_output(self) -> torch.Tensor | None: ...
    @property
    def mask(self) -> HeadMask: ...

class LinearGate(AdjustablePolicy):
    def __init__(
        self,
        *,
        weight: torch.Tensor,
        reference: torch.Tensor,
        static_logits: torch.Tensor,
        threshold: float,
        fixed: torch.Tensor | None = None,
        min_heads: int = 1,
        dropped_output: torch.Tensor | None = None,
        calibration: str = "",
    ) -> None: ...
    def logits(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor: ...
    def open_heads(self, logits: torch.Tensor) -> torch.Tensor: ...
    def with_dropped_output(self, dropped_output: torch.Tensor | None) -> LinearGate: ...
    def with_mean_heads(self, logits: torch.Tensor, mean_heads: float) -> LinearGate: ...
    @property
    def dropped_output(self) -> torch.Tensor | None: ...
    @property
    def fixed(self) -> torch.Tensor: ...
    @property
    def min_heads(self) -> int: ...
    @property
    def reference(self) -> torch.Tensor: ...
    @property
    def static_logits(self) -> torch.Tensor: ...
    @property
    def threshold(self) -> float: ...
    @property
    def weight(self) -> torch.Tensor: ...

class LinearGateReport:
    @property
    def calibration_examples(self) -> int: ...
    @property
    def contested(self) -> int: ...
    @property
    def explained(self) -> float: ...
    @property
    def fitted_examples(self) -> int: ...
    @property
    def input_variance(self) -> float: ...
    @property
    def mean_heads(self) -> float: ...
    @property
    def ridge(self) -> float: ...

class ConformalResult:
    @property
    def corrected_risk(self) -> float: ...
    @property
    def empirical_risk(self) -> float: ...
    @property
    def index(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def threshold(self) -> float: ...

class Rung:
    @staticmethod
    def from_json(text: str) -> Rung: ...
    def __init__(
        self,
        heads: HeadMask,
        *,
        blocks: torch.Tensor | None = None,
        dropped_output: torch.Tensor | None = None,
        dropped_blocks: torch.Tensor | None = None,
    ) -> None: ...
    def gates(self, hidden: torch.Tensor) -> GateSet: ...
    def to_json(self) -> str: ...
    @property
    def blocks(self) -> torch.Tensor | None: ...
    @property
    def dropped_blocks(self) -> torch.Tensor | None: ...
    @property
    def dropped_output(self) -> torch.Tensor | None: ...
    @property
    def heads(self) -> HeadMask: ...

class Ladder:
    @staticmethod
    def from_json(text: str) -> Ladder: ...
    def __getitem__(self, index: int) -> Rung: ...
    def __init__(self, rungs: collections.abc.Sequence[Rung]) -> None: ...
    def __len__(self) -> int: ...
    def __repr__(self) -> str: ...
    def shared_layers(self, rung: int) -> int: ...
    def to_json(self) -> str: ...
    @property
    def rungs(self) -> list[Rung]: ...

class LadderTrace:
    def flops_share(self, reached: torch.Tensor) -> float: ...
    def mean_heads(self, reached: torch.Tensor) -> float: ...
    def reached(self, thresholds: collections.abc.Sequence[float]) -> torch.Tensor: ...
    def threshold(
        self,
        mean_heads: float | None = None,
        *,
        flops_share: float | None = None,
        powers: collections.abc.Sequence[float] = [],
    ) -> float: ...
    def threshold_at_risk(
        self,
        risk: float,
        *,
        loss: str = "label",
        bound: float = 1.0,
        steps: int = 64,
        powers: collections.abc.Sequence[float] = [],
    ) -> ConformalResult: ...
    @property
    def changed(self) -> torch.Tensor: ...
    @property
    def confidence(self) -> torch.Tensor: ...
    @property
    def dense_flops(self) -> torch.Tensor: ...
    @property
    def flops(self) -> torch.Tensor: ...
    @property
    def heads(self) -> torch.Tensor: ...
    @property
    def kl(self) -> torch.Tensor: ...
    @property
    def loss(self) -> torch.Tensor | None: ...

class Escalation(AdjustablePolicy):
    @typing.overload
    def __init__(
        self,
        ladder: Ladder,
        *,
        threshold: float,
        signal: str = "output_margin",
        probe: LinearProbe | None = None,
        risk: float | None = None,
        calibration: str = "",
    ) -> None: ...
    @typing.overload
    def __init__(
        self,
        low: HeadMask,
        high: HeadMask | None = None,
        *,
        threshold: float,
        dropped_output: torch.Tensor | None = None,
        risk: float | None = None,
        calibration: str = "",
    ) -> None: ...
    def at(self, lambda_: float) -> GatePolicy: ...
    def trace(
        self,
        model: GatedModel,
        data: DataSource,
        *,
        progress: collections.abc.Callable[[int, int], None] | None = None,
    ) -> LadderTrace: ...
    def with_threshold(
        self, threshold: float, *, risk: float | None = None, calibration: str = ""
    ) -> Escalation: ...
    @property
    def dropped_output(self) -> torch.Tensor | None: ...
    @property
    def high(self) -> HeadMask: ...
    @property
    def ladder(self) -> Ladder: ...
    @property
    def low(self) -> HeadMask: ...
    @property
    def risk(self) -> float | None: ...
    @property
    def shared_layers(self) -> int: ...
    @property
    def signal(self) -> str: ...
    @property
    def threshold(self) -> float: ...

class Reactivation(AdjustablePolicy):
    def __init__(
        self,
        ladder: Ladder,
        probe: LinearProbe,
        *,
        signal: str = "probe_confidence",
        lambda_: float = 0.5,
        powers: collections.abc.Sequence[float] | None = None,
        risk: float | None = None,
        calibration: str = "",
    ) -> None: ...
    def at(self, lambda_: float) -> GatePolicy: ...
    def path(self, rung: int) -> Rung: ...
    def rungs_of(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor: ...
    def trace(
        self,
        model: GatedModel,
        data: DataSource,
        *,
        progress: collections.abc.Callable[[int, int], None] | None = None,
    ) -> LadderTrace: ...
    @property
    def ladder(self) -> Ladder: ...
    @property
    def lambda_(self) -> float: ...
    @property
    def powers(self) -> list[float]: ...
    @property
    def probe(self) -> LinearProbe: ...
    @property
    def risk(self) -> float | None: ...
    @property
    def signal(self) -> str: ...

class ReactivationReport:
    @property
    def changed(self) -> float: ...
    @property
    def flops_share(self) -> float: ...
    @property
    def kl(self) -> float: ...
    @property
    def loss_explained(self) -> float: ...
    @property
    def mean_heads(self) -> float: ...
    @property
    def probe_accuracy(self) -> float: ...
    @property
    def trace(self) -> LadderTrace: ...

class PolicyRun:
    def flops(self, layout: HeadLayout, tokens: torch.Tensor) -> torch.Tensor: ...
    @property
    def decision_flops(self) -> torch.Tensor | None: ...
    @property
    def gates(self) -> GateSet: ...
    @property
    def heads_run(self) -> torch.Tensor: ...
    @property
    def kv_heads_run(self) -> torch.Tensor: ...
    @property
    def layers_run(self) -> torch.Tensor: ...
    @property
    def neurons_run(self) -> torch.Tensor: ...
    @property
    def output(self) -> torch.Tensor: ...
    @property
    def records(self) -> str: ...

class LearnedGatesCore:
    def after_step(self) -> None: ...
    def describe(self, step: int) -> str: ...
    def hard(self) -> GateSet: ...
    def parameters(self) -> list: ...
    def penalty(self, step: int) -> torch.Tensor: ...
    def sample(
        self, step: int, examples: int, generator: torch.Generator | None = None
    ) -> GateSet: ...
    def set_parameter(self, name: str, value: torch.Tensor) -> None: ...
    def soft(self, step: int) -> GateSet: ...
    @property
    def name(self) -> str: ...

class HardConcreteGatesCore(LearnedGatesCore):
    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        penalty: float,
        start: float,
        per_example: bool,
        gamma: float,
        zeta: float,
        beta: float,
    ) -> None: ...

class SubsetGatesCore(LearnedGatesCore):
    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        keep: int,
        first_temperature: float,
        last_temperature: float,
        cooldown_steps: int,
        straight_through: bool,
        clip: bool,
    ) -> None: ...

class CofiGatesCore(LearnedGatesCore):
    def __init__(
        self,
        *,
        layout: HeadLayout,
        target_sparsity: float,
        attention_sublayers: bool,
        neurons: bool,
        feed_forward_sublayers: bool,
        hidden: bool,
        start: float,
        ramp_steps: int,
        absolute: bool,
        matrices: int,
        seed: int,
        gamma: float,
        zeta: float,
        beta: float,
    ) -> None: ...
    def expected_sparsity(self) -> torch.Tensor: ...

class FixedTargetGatesCore(LearnedGatesCore):
    def __init__(
        self,
        *,
        layout: HeadLayout,
        heads: int | None,
        attention_sublayers: int | None,
        neurons: int | None,
        feed_forward_sublayers: int | None,
        hidden: int | None,
        per_layer: bool,
        start: float,
        ramp_steps: int,
        gamma: float,
        zeta: float,
        beta: float,
    ) -> None: ...

class LayerDistillation:
    def __init__(
        self,
        model_dim: int,
        teacher_layers: collections.abc.Sequence[int],
        *,
        matching: str = "ordered",
        layer_weight: float = 0.9,
        prediction_weight: float = 0.1,
        temperature: float = 2.0,
    ) -> None: ...
    def loss(
        self,
        student: GatedModel,
        teacher: GatedModel,
        batch: collections.abc.Mapping[str, torch.Tensor],
        gates: GateSet,
    ) -> torch.Tensor: ...
    @property
    def projection(self) -> torch.Tensor: ...

class GateTraining:
    def __len__(self) -> int: ...
    def __repr__(self) -> str: ...
    @property
    def loss(self) -> list[float]: ...
    @property
    def penalty(self) -> list[float]: ...

class HardenedGates:
    def __repr__(self) -> str: ...
    def to_json(self) -> str: ...
    @property
    def dense_loss(self) -> float: ...
    @property
    def description(self) -> str: ...
    @property
    def draws(self) -> int: ...
    @property
    def examples(self) -> int: ...
    @property
    def gates(self) -> GateSet: ...
    @property
    def hard_loss(self) -> float: ...
    @property
    def heads(self) -> HeadMask: ...
    @property
    def sampled_deviation(self) -> float: ...
    @property
    def sampled_loss(self) -> float: ...
    @property
    def soft_loss(self) -> float: ...

class ProbeSignals:
    @property
    def confidence(self) -> torch.Tensor | None: ...
    @property
    def entropy(self) -> torch.Tensor | None: ...
    @property
    def log_loss(self) -> torch.Tensor | None: ...
    @property
    def margin(self) -> torch.Tensor | None: ...

class LinearProbe:
    @staticmethod
    def from_json(text: str) -> LinearProbe: ...
    def __init__(
        self,
        layer: int,
        *,
        reference: torch.Tensor,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        loss_weight: torch.Tensor | None = None,
        loss_bias: float = 0.0,
    ) -> None: ...
    def __repr__(self) -> str: ...
    def logits(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor: ...
    def signals(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> ProbeSignals: ...
    def to_json(self) -> str: ...
    @property
    def bias(self) -> torch.Tensor | None: ...
    @property
    def layer(self) -> int: ...
    @property
    def loss_bias(self) -> float: ...
    @property
    def loss_weight(self) -> torch.Tensor | None: ...
    @property
    def reference(self) -> torch.Tensor: ...
    @property
    def weight(self) -> torch.Tensor | None: ...

class FittedProbe:
    @property
    def accuracy(self) -> float: ...
    @property
    def examples(self) -> int: ...
    @property
    def loss_explained(self) -> float: ...
    @property
    def probe(self) -> LinearProbe: ...
    @property
    def ridge(self) -> float: ...

class LayerGate(AdjustablePolicy):
    def __init__(
        self,
        *,
        weight: torch.Tensor,
        reference: torch.Tensor,
        static_logits: torch.Tensor,
        threshold: float,
        features: collections.abc.Sequence[str] = [],
        probes: collections.abc.Sequence[LinearProbe] = [],
        fixed: torch.Tensor | None = None,
        min_heads: int = 0,
        dropped_output: torch.Tensor | None = None,
        calibration: str = "",
    ) -> None: ...
    def logits(
        self, layer: int, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor: ...
    def open_heads(self, logits: torch.Tensor) -> torch.Tensor: ...
    def with_dropped_output(self, dropped_output: torch.Tensor | None) -> LayerGate: ...
    def with_threshold(self, threshold: float) -> LayerGate: ...
    @property
    def dropped_output(self) -> torch.Tensor | None: ...
    @property
    def features(self) -> list[str]: ...
    @property
    def fixed(self) -> torch.Tensor: ...
    @property
    def min_heads(self) -> int: ...
    @property
    def probes(self) -> list: ...
    @property
    def reference(self) -> torch.Tensor: ...
    @property
    def static_logits(self) -> torch.Tensor: ...
    @property
    def threshold(self) -> float: ...
    @property
    def weight(self) -> torch.Tensor: ...

class InputGateReport:
    @property
    def contested(self) -> int: ...
    @property
    def cost_share(self) -> list[float]: ...
    @property
    def hard_loss(self) -> float: ...
    @property
    def input_variance(self) -> float: ...
    @property
    def loss(self) -> list[float]: ...
    @property
    def mean_heads(self) -> float: ...
    @property
    def sampled_loss(self) -> float: ...
    @property
    def static_loss(self) -> float: ...
    @property
    def warning(self) -> str: ...

class LadderTraining:
    @property
    def drawn(self) -> list[float]: ...
    @property
    def ladder(self) -> Ladder: ...
    @property
    def low(self) -> list[float]: ...
    @property
    def rungs(self) -> list[int]: ...
    @property
    def top(self) -> list[float]: ...

class RungTrainer:
    def __init__(
        self,
        model: GatedModel,
        rungs: collections.abc.Sequence[Rung],
        *,
        distillation: Objective,
        learning_rate: float = 4e-05,
        weight_decay: float = 0.01,
        max_norm: float = 1.0,
        warmup_steps: int = 0,
        total_steps: int = 0,
        task: Objective | None = None,
        task_weight: float = 0.5,
        last_without_task: bool = True,
    ) -> None: ...
    def load_state_dict(self, state: dict) -> None: ...
    def state_dict(self) -> dict: ...
    def step(
        self,
        batch: collections.abc.Mapping[str, torch.Tensor],
        dense: torch.Tensor,
        rungs: collections.abc.Sequence[int] | None = None,
    ) -> list[float]: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def steps(self) -> int: ...

class SecondLook(AdjustablePolicy):
    def __init__(
        self,
        gate: AdjustablePolicy,
        *,
        band: float,
        ratio: float,
        weight: torch.Tensor,
        median: torch.Tensor,
    ) -> None: ...
    def estimates(
        self,
        model: GatedModel,
        layer: int,
        heads: collections.abc.Sequence[int],
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor: ...
    @property
    def band(self) -> float: ...
    @property
    def gate(self) -> AdjustablePolicy: ...
    @property
    def median(self) -> torch.Tensor: ...
    @property
    def ratio(self) -> float: ...
    @property
    def weight(self) -> torch.Tensor: ...

class StaticStage:
    @property
    def always_on(self) -> int: ...
    @property
    def contested(self) -> int: ...
    @property
    def fixed(self) -> torch.Tensor: ...
    @property
    def need(self) -> torch.Tensor: ...
    @property
    def pruned(self) -> int: ...

class IsotonicMap:
    @staticmethod
    def fit(
        z: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None
    ) -> IsotonicMap: ...
    def __call__(self, z: float) -> float: ...
    def __init__(
        self, centres: collections.abc.Sequence[float], values: collections.abc.Sequence[float]
    ) -> None: ...
    @property
    def centres(self) -> list[float]: ...
    @property
    def values(self) -> list[float]: ...

class HeadIsotonic:
    @staticmethod
    def fit(
        logits: torch.Tensor, importance: torch.Tensor, shrinkage: float = 50
    ) -> HeadIsotonic: ...
    @staticmethod
    def from_json(text: str) -> HeadIsotonic: ...
    def __call__(self, logits: torch.Tensor) -> torch.Tensor: ...
    def map(self, layer: int, head: int) -> IsotonicMap: ...
    def order(self, logits: torch.Tensor) -> torch.Tensor: ...
    def to_json(self) -> str: ...

class LearnThenTestResult:
    @property
    def empirical_risk(self) -> float: ...
    @property
    def index(self) -> int: ...
    @property
    def p_value(self) -> float: ...
    @property
    def samples(self) -> int: ...
    @property
    def threshold(self) -> float: ...

class PolicyTrace:
    def select(self, index: torch.Tensor) -> PolicyTrace: ...
    @property
    def bound(self) -> float: ...
    @property
    def data(self) -> str: ...
    @property
    def drift(self) -> torch.Tensor: ...
    @property
    def flops(self) -> torch.Tensor: ...
    @property
    def grid(self) -> list[float]: ...
    @property
    def heads_run(self) -> torch.Tensor: ...
    @property
    def loss(self) -> str: ...
    @property
    def losses(self) -> torch.Tensor: ...
    @property
    def model(self) -> str: ...
    @property
    def policy(self) -> str: ...
    @property
    def task(self) -> torch.Tensor: ...
    @property
    def tokens(self) -> torch.Tensor: ...

class CalibrationBucket:
    @property
    def empirical_risk(self) -> float: ...
    @property
    def evidence(self) -> float: ...
    @property
    def lambda_(self) -> float: ...
    @property
    def max_tokens(self) -> int | None: ...
    @property
    def min_tokens(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def task(self) -> int: ...

class Calibration:
    @staticmethod
    def from_json(text: str) -> Calibration: ...
    def at_least(self, wanted: float) -> float: ...
    def check_data(self, data: DataSource) -> None: ...
    def check_model(self, model: GatedModel) -> None: ...
    def check_policy(self, policy: AdjustablePolicy) -> None: ...
    def lambda_of(self, tokens: int, task: int = 0) -> float: ...
    def to_json(self) -> str: ...
    @property
    def bound(self) -> float: ...
    @property
    def buckets(self) -> list[CalibrationBucket]: ...
    @property
    def data(self) -> str: ...
    @property
    def delta(self) -> float: ...
    @property
    def drift(self) -> float: ...
    @property
    def grid(self) -> list[float]: ...
    @property
    def id(self) -> str: ...
    @property
    def lambda_(self) -> float: ...
    @property
    def loss(self) -> str: ...
    @property
    def mean_flops(self) -> list[float]: ...
    @property
    def mean_heads(self) -> list[float]: ...
    @property
    def mean_loss(self) -> list[float]: ...
    @property
    def method(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def policy(self) -> str: ...
    @property
    def risk(self) -> float: ...

class CalibratedPolicy(AdjustablePolicy):
    def __init__(
        self, policy: AdjustablePolicy, calibration: Calibration, *, lambda_: float = 0.0
    ) -> None: ...
    @property
    def calibration(self) -> Calibration: ...
    @property
    def lambda_(self) -> float: ...

class StaticPruning:
    def __init__(
        self,
        heads: HeadMask,
        gates: GateSet | None = None,
        details: str = "{}",
        dropped_neurons: torch.Tensor | None = None,
    ) -> None: ...
    def __repr__(self) -> str: ...
    def all_gates(self) -> GateSet: ...
    @property
    def details(self) -> typing.Any: ...
    @property
    def dropped_neurons(self) -> torch.Tensor | None: ...
    @property
    def gates(self) -> GateSet: ...
    @property
    def heads(self) -> HeadMask: ...
    @property
    def heads_only(self) -> bool: ...
    @property
    def refits(self) -> int: ...

class LatencyTables:
    @property
    def heads(self) -> list[float]: ...
    @property
    def neurons(self) -> list[float]: ...
    @property
    def other(self) -> float: ...

class HiesTuning:
    def __repr__(self) -> str: ...
    @property
    def alpha(self) -> float: ...
    @property
    def alphas(self) -> list[float]: ...
    @property
    def data_hash(self) -> str: ...
    @property
    def losses(self) -> list[float]: ...
    @property
    def masks(self) -> list[HeadMask]: ...
    @property
    def validation_hash(self) -> str: ...

class BudgetState:
    @property
    def continuous(self) -> float: ...
    @property
    def frozen(self) -> bool: ...
    @property
    def lambda_(self) -> float: ...
    @property
    def measured(self) -> float: ...
    @property
    def observations(self) -> int: ...
    @property
    def unmet(self) -> bool: ...

class BudgetController:
    @staticmethod
    def for_calibration(
        calibration: Calibration,
        target: float,
        unit: str = "heads",
        *,
        latency: LatencyModel | None = None,
        layout: HeadLayout | None = None,
        tokens: float = 0.0,
        batch: int = 1,
        watts: float = 0.0,
    ) -> BudgetController: ...
    def __init__(
        self,
        *,
        target: float,
        unit: str = "heads",
        grid: collections.abc.Sequence[float] = [],
        floor: float = 0.0,
        start: float = 1.0,
        gain: float = 1.0,
        proportional: float | None = None,
        integral: float | None = None,
        dead_band: float = 0.02,
        smoothing: float = 0.3,
    ) -> None: ...
    def freeze(self, frozen: bool = True) -> None: ...
    def observe(self, measured: float) -> float: ...
    @property
    def floor(self) -> float: ...
    @property
    def gain(self) -> float: ...
    @property
    def lambda_(self) -> float: ...
    @property
    def state(self) -> BudgetState: ...
    @property
    def target(self) -> float: ...
    @property
    def unit(self) -> str: ...

class HysteresisGate(AdjustablePolicy):
    def __init__(self, gate: LinearGate, margin: float) -> None: ...
    @property
    def margin(self) -> float: ...

class AuditState:
    @property
    def action(self) -> str: ...
    @property
    def alarms(self) -> int: ...
    @property
    def audited(self) -> int: ...
    @property
    def lower_bound(self) -> float: ...
    @property
    def mean_loss(self) -> float: ...
    @property
    def watched(self) -> int: ...

class ShadowAudit:
    def __init__(
        self,
        *,
        risk: float,
        share: float = 0.01,
        bound: float = 1.0,
        epsilon: float = 0.05,
        salt: str = "headkit",
    ) -> None: ...
    def chosen(self, request_id: str) -> bool: ...
    def lambda_at(self, lambda_: float, grid: collections.abc.Sequence[float]) -> float: ...
    def observe(self, loss: float) -> bool: ...
    @property
    def state(self) -> AuditState: ...

class OodScore:
    @staticmethod
    def fit(
        features: torch.Tensor,
        calibration: torch.Tensor,
        *,
        epsilon: float = 0.01,
        shrinkage: float = 0.1,
    ) -> OodScore: ...
    @staticmethod
    def from_json(text: str) -> OodScore: ...
    def __call__(self, features: torch.Tensor) -> torch.Tensor: ...
    def to_json(self) -> str: ...
    @property
    def epsilon(self) -> float: ...
    @property
    def limit(self) -> float: ...

class LatencyModel:
    @staticmethod
    def key_of(model: GatedModel, batch: collections.abc.Mapping[str, torch.Tensor]) -> str: ...
    @staticmethod
    def load(path: str, key: str) -> LatencyModel: ...
    @staticmethod
    def measure(
        model: GatedModel,
        batch: collections.abc.Mapping[str, torch.Tensor],
        *,
        tokens: collections.abc.Sequence[int] = [16, 64, 256],
        batches: collections.abc.Sequence[int] = [1, 8],
        repeats: int = 3,
        seconds: float = 0.8,
        blocks: bool = False,
    ) -> LatencyModel: ...
    def milliseconds(self, heads: float, blocks: float, tokens: int, batch: int) -> float: ...
    def save(self, path: str) -> None: ...
    def tables(self, tokens: int, batch: int) -> LatencyTables: ...
    def to_json(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def measured_sizes(self) -> int: ...

class EnergyMeter:
    def __init__(self, folder: str = "/sys/class/powercap") -> None: ...
    def joules(self) -> float: ...
    def watts(self, run: collections.abc.Callable[[], None] | None, seconds: float) -> float: ...

class RecordFile:
    def __init__(self, path: str) -> None: ...
    def write(self, lines: str) -> None: ...
    @property
    def path(self) -> str: ...
    @property
    def written(self) -> int: ...

class AuditToggle:
    @property
    def change(self) -> float: ...
    @property
    def head(self) -> HeadId: ...
    @property
    def logit(self) -> float | None: ...
    @property
    def ran(self) -> bool: ...
    @property
    def row(self) -> int: ...

class GovernedRun:
    @property
    def audit_loss(self) -> torch.Tensor | None: ...
    @property
    def budget_unmet(self) -> bool: ...
    @property
    def cost(self) -> float: ...
    @property
    def full(self) -> torch.Tensor: ...
    @property
    def lambda_(self) -> float: ...
    @property
    def ood_score(self) -> torch.Tensor | None: ...
    @property
    def run(self) -> PolicyRun: ...
    @property
    def toggles(self) -> list[AuditToggle]: ...

class PolicyRunner:
    def __init__(
        self,
        policy: AdjustablePolicy,
        *,
        lambda_: float = 0.0,
        controller: BudgetController | None = None,
        audit: ShadowAudit | None = None,
        audit_loss: str = "flip",
        audit_bound: float | None = None,
        audit_toggles: int = 0,
        ood: OodScore | None = None,
        records: RecordFile | None = None,
        weights_sha256: str = "",
    ) -> None: ...
    def govern(
        self,
        model: GatedModel,
        batch: collections.abc.Mapping[str, torch.Tensor],
        request_ids: collections.abc.Sequence[str] = [],
    ) -> GovernedRun: ...

class ModelFolder:
    config: str
    details: str
    gates: GateSet
    policy: str
    def __repr__(self) -> str: ...
    @property
    def base_fingerprint(self) -> str: ...
    @property
    def headkit_version(self) -> str: ...
    @property
    def heads(self) -> HeadMask: ...
    @property
    def layout(self) -> HeadLayout: ...
    @property
    def neurons(self) -> torch.Tensor | None: ...
    @property
    def sublayers(self) -> Sublayers: ...
    @property
    def torch_version(self) -> str: ...
    @property
    def weights(self) -> dict[str, torch.Tensor]: ...
    @property
    def weights_sha256(self) -> str: ...

class Encoder(GatedModel):
    def base_fingerprint(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def config(self) -> str: ...

class SavedEncoder:
    @property
    def gates(self) -> GateSet: ...
    @property
    def model(self) -> Encoder: ...
    @property
    def policy(self) -> GatePolicy | None: ...

class RivalHead:
    @property
    def head(self) -> int: ...
    @property
    def layer(self) -> int: ...
    @property
    def logit(self) -> float: ...
    @property
    def open(self) -> bool: ...

class GateFlip:
    @property
    def logit(self) -> float: ...
    @property
    def minimal(self) -> bool: ...
    @property
    def removed(self) -> list[int]: ...
    @property
    def verified(self) -> bool: ...

class TokenRemoval:
    @property
    def flips(self) -> bool: ...
    @property
    def logit(self) -> float | None: ...
    @property
    def state(self) -> str: ...

class FeaturePart:
    @property
    def dimension(self) -> int: ...
    @property
    def scalar(self) -> str: ...
    @property
    def token(self) -> int | None: ...
    @property
    def value(self) -> float: ...

class FeatureParts:
    @property
    def parts(self) -> list[FeaturePart]: ...
    @property
    def rest(self) -> float: ...

class LogitPart:
    @property
    def feature(self) -> str: ...
    @property
    def token(self) -> int: ...
    @property
    def value(self) -> float: ...

class HeadDecision:
    @property
    def attention(self) -> str | None: ...
    @property
    def base(self) -> float | None: ...
    @property
    def control_share(self) -> float | None: ...
    @property
    def distance(self) -> float | None: ...
    @property
    def effects(self) -> str | None: ...
    @property
    def feature_parts(self) -> FeatureParts | None: ...
    @property
    def flip(self) -> GateFlip | None: ...
    @property
    def gate(self) -> float: ...
    @property
    def head(self) -> int: ...
    @property
    def joint_parts(self) -> FeatureParts | None: ...
    @property
    def layer(self) -> int: ...
    @property
    def logit(self) -> float | None: ...
    @property
    def margin(self) -> float | None: ...
    @property
    def margin_std(self) -> float | None: ...
    @property
    def parts(self) -> list[LogitPart]: ...
    @property
    def rank(self) -> int | None: ...
    @property
    def reason(self) -> str: ...
    @property
    def removal(self) -> TokenRemoval | None: ...
    @property
    def residual(self) -> float | None: ...
    @property
    def rest(self) -> float | None: ...
    @property
    def rivals(self) -> list[RivalHead] | None: ...
    @property
    def roles(self) -> str | None: ...
    @property
    def state(self) -> str: ...
    @property
    def threshold(self) -> float | None: ...

class DecisionRecord:
    __hash__: typing.ClassVar[None] = None  # type: ignore[assignment]
    @staticmethod
    def from_json(text: str) -> DecisionRecord: ...
    def __eq__(self, other: object) -> bool: ...
    def block_gates(self) -> torch.Tensor | None: ...
    def gates(self) -> torch.Tensor: ...
    def to_json(self) -> str: ...
    def updated(self, patch: str) -> DecisionRecord: ...
    @property
    def active(self) -> int: ...
    @property
    def calibration(self) -> str: ...
    @property
    def confidence(self) -> float | None: ...
    @property
    def decided_at(self) -> int | None: ...
    @property
    def flops_dense(self) -> float | None: ...
    @property
    def flops_run(self) -> float | None: ...
    @property
    def heads(self) -> list[HeadDecision]: ...
    @property
    def heads_run(self) -> int: ...
    @property
    def input(self) -> int: ...
    @property
    def input_sha256(self) -> str: ...
    @property
    def layout(self) -> HeadLayout: ...
    @property
    def mode(self) -> str: ...
    @property
    def open_blocks(self) -> list[list[int]]: ...
    @property
    def policy(self) -> str: ...
    @property
    def policy_sha256(self) -> str: ...
    @property
    def reference(self) -> str: ...
    @property
    def risk_bound(self) -> float | None: ...
    @property
    def rung(self) -> int | None: ...
    @property
    def rungs(self) -> int | None: ...
    @property
    def signal(self) -> str: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def tokens(self) -> int: ...
    @property
    def weights_sha256(self) -> str: ...

class OutputMetric:
    def __call__(
        self,
        output: torch.Tensor,
        *,
        target: torch.Tensor | None = None,
        distractor: torch.Tensor | None = None,
        position: torch.Tensor | None = None,
        dense: torch.Tensor | None = None,
    ) -> torch.Tensor: ...
    @property
    def name(self) -> str: ...
    @property
    def needs_dense(self) -> bool: ...

class ToggleEffect:
    @property
    def ablation(self) -> str: ...
    @property
    def frozen(self) -> float: ...
    @property
    def interval(self) -> tuple[float, float] | None: ...
    @property
    def redecided(self) -> float | None: ...
    @property
    def routing_mediated(self) -> float | None: ...

class HeadEffects:
    @property
    def direct(self) -> float | None: ...
    @property
    def direct_linearised(self) -> bool: ...
    @property
    def flipped_gates(self) -> list[tuple[HeadId, bool]]: ...
    @property
    def gate(self) -> float: ...
    @property
    def gate_gradient(self) -> float | None: ...
    @property
    def head(self) -> int: ...
    @property
    def integrated_gate_gradient(self) -> float | None: ...
    @property
    def layer(self) -> int: ...
    @property
    def level(self) -> str: ...
    @property
    def on(self) -> bool: ...
    @property
    def relative_write_norm(self) -> float | None: ...
    @property
    def repair(self) -> float | None: ...
    @property
    def repair_interval(self) -> tuple[float, float] | None: ...
    @property
    def shapley(self) -> float | None: ...
    @property
    def shapley_error(self) -> float | None: ...
    @property
    def toggle(self) -> ToggleEffect | None: ...
    @property
    def write_norm(self) -> float | None: ...

class PairEffect:
    @property
    def a(self) -> HeadId: ...
    @property
    def ablation(self) -> str: ...
    @property
    def b(self) -> HeadId: ...
    @property
    def index(self) -> str: ...
    @property
    def interval(self) -> tuple[float, float] | None: ...
    @property
    def value(self) -> float: ...

class InputEffects:
    __hash__: typing.ClassVar[None] = None  # type: ignore[assignment]
    @staticmethod
    def from_json(text: str) -> InputEffects: ...
    def __eq__(self, other: object) -> bool: ...
    def __repr__(self) -> str: ...
    def record_patch(self) -> str: ...
    def to_json(self) -> str: ...
    @property
    def ablation(self) -> str: ...
    @property
    def direct_residual(self) -> float | None: ...
    @property
    def distractor(self) -> int | None: ...
    @property
    def heads(self) -> list[HeadEffects]: ...
    @property
    def input(self) -> int: ...
    @property
    def metric(self) -> str: ...
    @property
    def not_computed(self) -> dict[str, str]: ...
    @property
    def pairs(self) -> list[PairEffect]: ...
    @property
    def path_gap(self) -> float | None: ...
    @property
    def reference(self) -> str: ...
    @property
    def routing(self) -> str: ...
    @property
    def target(self) -> int | None: ...
    @property
    def value(self) -> float: ...
    @property
    def value_without_heads(self) -> float | None: ...

class CausalGating:
    def to_json(self) -> str: ...
    @property
    def agreement(self) -> torch.Tensor: ...
    @property
    def examples(self) -> int: ...
    @property
    def facilitating(self) -> torch.Tensor: ...
    @property
    def inconsistent(self) -> int: ...
    @property
    def interfering(self) -> torch.Tensor: ...
    @property
    def irrelevant(self) -> torch.Tensor: ...
    @property
    def labels(self) -> list[list[str]]: ...
    @property
    def objective(self) -> str: ...
    @property
    def pressed_down(self) -> torch.Tensor: ...
    @property
    def pressed_up(self) -> torch.Tensor: ...

class FaithfulInteractions:
    @property
    def exact(self) -> bool: ...
    @property
    def explained(self) -> float: ...
    @property
    def pairs(self) -> torch.Tensor: ...
    @property
    def sets(self) -> int: ...
    @property
    def singles(self) -> torch.Tensor: ...

class SampleAttention:
    @property
    def cross(self) -> bool: ...
    @property
    def heads(self) -> list[int]: ...
    @property
    def key_allowed(self) -> torch.Tensor: ...
    @property
    def layer(self) -> int: ...
    @property
    def output_norm(self) -> torch.Tensor | None: ...
    @property
    def probabilities(self) -> torch.Tensor: ...
    @property
    def query_valid(self) -> torch.Tensor: ...
    @property
    def row(self) -> int: ...
    @property
    def sample(self) -> int: ...
    @property
    def value_norm(self) -> torch.Tensor | None: ...

class RoleNull:
    def __repr__(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> float: ...

class RoleScore:
    __hash__: typing.ClassVar[None] = None  # type: ignore[assignment]
    def __eq__(self, other: object) -> bool: ...
    def __repr__(self) -> str: ...
    @property
    def agrees(self) -> bool | None: ...
    @property
    def assessed(self) -> bool: ...
    @property
    def assigned(self) -> bool: ...
    @property
    def best_null(self) -> float | None: ...
    @property
    def convention(self) -> str: ...
    @property
    def details(self) -> dict: ...
    @property
    def dropped_rows(self) -> int: ...
    @property
    def excluded_mass(self) -> float: ...
    @property
    def formula(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def lower(self) -> float | None: ...
    @property
    def margin(self) -> float | None: ...
    @property
    def nulls(self) -> list[RoleNull]: ...
    @property
    def reason(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def score(self) -> float | None: ...
    @property
    def sequences(self) -> int: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def threshold_source(self) -> str: ...
    @property
    def upper(self) -> float | None: ...
    @property
    def variant(self) -> str: ...

class RoleTable:
    @staticmethod
    def from_json(text: str) -> RoleTable: ...
    @staticmethod
    def plot(table: RoleTable, path: str | pathlib.Path) -> None: ...
    def __repr__(self) -> str: ...
    def find(self, layer: int, head: int, role: str, variant: str = "") -> RoleScore | None: ...
    def labels(self, layer: int, head: int) -> list[RoleScore]: ...
    def to_json(self) -> str: ...
    @property
    def confidence(self) -> float: ...
    @property
    def heads(self) -> list[list[list[RoleScore]]]: ...
    @property
    def layout(self) -> HeadLayout: ...
    @property
    def of(self) -> str: ...
    @property
    def registry_version(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def sequences(self) -> int: ...
    @property
    def warnings(self) -> list[str]: ...

class RoleOptions:
    def __init__(
        self,
        *,
        gates: GateSet = ...,
        special_tokens: collections.abc.Sequence[int] = [],
        delimiters: collections.abc.Sequence[tuple[str, collections.abc.Sequence[int]]] = [],
        embedding: torch.Tensor | None = None,
        unembedding: torch.Tensor | None = None,
        inactive_threshold: float | None = None,
        random_sequences: int = 32,
        begin_token: int = -1,
        max_tokens: int = 0,
        draws: int = 200,
        bootstrap: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
        progress: collections.abc.Callable[[int, int], None] | None = None,
    ) -> None: ...

class DependencySentence:
    @property
    def head(self) -> list[int]: ...
    @property
    def relation(self) -> list[str]: ...
    @property
    def spans(self) -> list[tuple[int, int]]: ...
    @property
    def text(self) -> str: ...
    @property
    def words(self) -> list[str]: ...

class SequenceSyntax:
    def __init__(
        self,
        word_of_token: collections.abc.Sequence[int],
        head_of_word: collections.abc.Sequence[int],
        relation: collections.abc.Sequence[str],
    ) -> None: ...
    @property
    def head_of_word(self) -> list[int]: ...
    @property
    def relation(self) -> list[str]: ...
    @property
    def skipped_arcs(self) -> int: ...
    @property
    def word_of_token(self) -> list[int]: ...

class OffsetBaseline:
    @property
    def accuracy(self) -> float: ...
    @property
    def arcs(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def relation(self) -> str: ...

class GateCut:
    @property
    def distance(self) -> float | None: ...
    @property
    def margin(self) -> float | None: ...
    @property
    def rank(self) -> int | None: ...
    @property
    def rivals(self) -> list[RivalHead]: ...

class GateDecomposition:
    def cut(self, head: int) -> GateCut: ...
    def flip(self, head: int) -> GateFlip | None: ...
    def joint(self, head: int) -> torch.Tensor: ...
    def open_without(self, tokens: collections.abc.Sequence[int]) -> list[bool]: ...
    def residual(self, head: int) -> float: ...
    @property
    def control_share(self) -> float | None: ...
    @property
    def feature_parts(self) -> torch.Tensor: ...
    @property
    def logits(self) -> torch.Tensor: ...
    @property
    def open(self) -> list[bool]: ...
    @property
    def token_parts(self) -> torch.Tensor: ...
    @property
    def tokens(self) -> list[int]: ...

class InputUnit:
    def __init__(
        self,
        text: str = "",
        *,
        grid: typing.Annotated[collections.abc.Sequence[int], "FixedSize(2)"] | None = None,
        seconds: float | None = None,
        special: bool = False,
        padding: bool = False,
    ) -> None: ...
    @property
    def grid(self) -> typing.Annotated[list[int], "FixedSize(2)"] | None: ...
    @property
    def padding(self) -> bool: ...
    @property
    def seconds(self) -> float | None: ...
    @property
    def special(self) -> bool: ...
    @property
    def text(self) -> str: ...

class FaithfulnessCurve:
    @property
    def inverse(self) -> list[float]: ...
    @property
    def random_lower(self) -> list[float]: ...
    @property
    def random_mean(self) -> list[float]: ...
    @property
    def random_upper(self) -> list[float]: ...
    @property
    def values(self) -> list[float]: ...

class Aopc:
    @property
    def beats_random(self) -> bool: ...
    @property
    def grid(self) -> str: ...
    @property
    def highest(self) -> float | None: ...
    @property
    def inverse(self) -> float: ...
    @property
    def lowest(self) -> float | None: ...
    @property
    def normalised(self) -> float | None: ...
    @property
    def random_lower(self) -> float: ...
    @property
    def random_upper(self) -> float: ...
    @property
    def value(self) -> float: ...

class Faithfulness:
    def to_json(self) -> str: ...
    @property
    def beam_width(self) -> int: ...
    @property
    def bounds(self) -> str: ...
    @property
    def comprehensiveness(self) -> FaithfulnessCurve: ...
    @property
    def comprehensiveness_aopc(self) -> list[Aopc]: ...
    @property
    def k(self) -> list[int]: ...
    @property
    def order(self) -> list[int]: ...
    @property
    def sufficiency(self) -> FaithfulnessCurve: ...
    @property
    def sufficiency_aopc(self) -> list[Aopc]: ...
    @property
    def value_all(self) -> float: ...
    @property
    def value_none(self) -> float: ...

class Simulatability:
    def to_json(self) -> str: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def auroc(self) -> float | None: ...
    @property
    def auroc_by_head(self) -> float | None: ...
    @property
    def decisions(self) -> int: ...
    @property
    def inputs(self) -> int: ...
    @property
    def lower(self) -> float: ...
    @property
    def majority(self) -> float: ...
    @property
    def majority_by_head(self) -> float: ...
    @property
    def shown_parts(self) -> int: ...
    @property
    def upper(self) -> float: ...

class RandomisationCheck:
    def to_json(self) -> str: ...
    @property
    def changes(self) -> bool: ...
    @property
    def heads(self) -> int: ...
    @property
    def inputs(self) -> int: ...
    @property
    def limit(self) -> float: ...
    @property
    def lower(self) -> float: ...
    @property
    def similarity(self) -> float: ...
    @property
    def upper(self) -> float: ...

class SelectionStability:
    @property
    def identical(self) -> float: ...
    @property
    def jaccard(self) -> float: ...
    @property
    def nogueira(self) -> float | None: ...
    @property
    def nogueira_lower(self) -> float | None: ...
    @property
    def nogueira_upper(self) -> float | None: ...
    @property
    def undefined_inputs(self) -> int: ...

class RankStability:
    @property
    def kendall(self) -> float | None: ...
    @property
    def kendall_lower(self) -> float | None: ...
    @property
    def kendall_upper(self) -> float | None: ...
    @property
    def rbo(self) -> float: ...
    @property
    def rbo_lower(self) -> float: ...
    @property
    def rbo_upper(self) -> float: ...

class ExplanationStability:
    def to_json(self) -> str: ...
    @property
    def axis(self) -> str: ...
    @property
    def effect(self) -> RankStability | None: ...
    @property
    def explanation(self) -> RankStability | None: ...
    @property
    def inputs(self) -> int: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def selection(self) -> SelectionStability | None: ...

class RankGap:
    @property
    def first(self) -> str: ...
    @property
    def first_rank(self) -> float: ...
    @property
    def head(self) -> int: ...
    @property
    def layer(self) -> int: ...
    @property
    def second(self) -> str: ...
    @property
    def second_rank(self) -> float: ...

class MetricAgreement:
    def to_json(self) -> str: ...
    @property
    def agreement(self) -> Agreement: ...
    @property
    def gap(self) -> float: ...
    @property
    def gaps(self) -> list[RankGap]: ...

class CorpusCorrelation:
    @builtins.property
    def lower(self) -> float | None: ...
    @builtins.property
    def property(self) -> str: ...
    @builtins.property
    def spearman(self) -> float | None: ...
    @builtins.property
    def upper(self) -> float | None: ...

class CorpusHead:
    @property
    def by_class(self) -> dict[str, float]: ...
    @property
    def correlations(self) -> list[CorpusCorrelation]: ...
    @property
    def frequency(self) -> float: ...
    @property
    def head(self) -> int: ...
    @property
    def layer(self) -> int: ...
    @property
    def lower(self) -> float: ...
    @property
    def margin_spread(self) -> float | None: ...
    @property
    def mean_margin(self) -> float | None: ...
    @property
    def state(self) -> str: ...
    @property
    def upper(self) -> float: ...

class CorpusReport:
    def to_json(self) -> str: ...
    @property
    def classes(self) -> dict[str, int]: ...
    @property
    def heads(self) -> list[CorpusHead]: ...
    @property
    def inputs(self) -> int: ...
    @property
    def layout(self) -> HeadLayout: ...
    @property
    def mean_selected(self) -> float: ...
    @property
    def policy(self) -> str: ...
    @property
    def same_for_all(self) -> float | None: ...
    @property
    def selected(self) -> dict[int, int]: ...
    @property
    def selected_by_class(self) -> dict[str, float]: ...
    @property
    def selected_correlations(self) -> list[CorpusCorrelation]: ...
    @property
    def selected_spread(self) -> float: ...
    @property
    def split_half(self) -> float | None: ...

class CorpusView:
    def __init__(self, properties: collections.abc.Sequence[str] = []) -> None: ...
    def add(
        self, record: DecisionRecord, values: collections.abc.Sequence[float] = [], label: str = ""
    ) -> None: ...
    def report(self, confidence: float = 0.95) -> CorpusReport: ...
    @property
    def inputs(self) -> int: ...

class RoleMeasure:
    def __init__(
        self, *, draws: int = 200, bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0
    ) -> None: ...
    @property
    def bootstrap(self) -> int: ...
    @property
    def confidence(self) -> float: ...
    @property
    def draws(self) -> int: ...
    @property
    def seed(self) -> int: ...

class PatchGrid:
    def __init__(
        self,
        *,
        rows: int,
        columns: int,
        first_patch: int = 1,
        patch_size: float = 1.0,
        cls: int = 0,
        registers: collections.abc.Sequence[int] = [],
    ) -> None: ...
    @property
    def cls(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def first_patch(self) -> int: ...
    @property
    def patch_size(self) -> float: ...
    @property
    def patches(self) -> int: ...
    @property
    def registers(self) -> list[int]: ...
    @property
    def rows(self) -> int: ...

class CodedAttention:
    def to_json(self) -> str: ...
    @property
    def data(self) -> str: ...
    @property
    def encoding(self) -> str: ...
    @property
    def kept_mass(self) -> list[float]: ...
    @property
    def received(self) -> list[float]: ...
    @property
    def sink_mass(self) -> list[float]: ...
    @property
    def value_norm(self) -> list[float]: ...

class SummaryLine:
    @property
    def level(self) -> str: ...
    @property
    def text(self) -> str: ...

def active_isa() -> str: ...
def align_words(
    sentence: DependencySentence, offsets: collections.abc.Sequence[tuple[int, int]]
) -> SequenceSyntax: ...
def apply_pruning(model: GatedModel, pruning: StaticPruning) -> None: ...
def attention_backend(
    x: torch.Tensor,
    weights: AttentionWeights,
    num_heads: int,
    *,
    gate: torch.Tensor | None = None,
    skip: bool = True,
    key_padding_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    attn_bias: torch.Tensor | None = None,
    dropped_output: torch.Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int = 0,
    kv: torch.Tensor | None = None,
    num_kv_heads: int | None = None,
    kv_head: collections.abc.Sequence[int] | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    q_norm_weight: torch.Tensor | None = None,
    k_norm_weight: torch.Tensor | None = None,
    norm_eps: float = 1e-06,
    window: int | None = None,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    query_offset: int = 0,
) -> BackendChoice: ...
def attention_block_call(
    x: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor | None,
    v_weight: torch.Tensor | None,
    o_weight: torch.Tensor,
    num_heads: int,
    *,
    q_bias: torch.Tensor | None = None,
    k_bias: torch.Tensor | None = None,
    v_bias: torch.Tensor | None = None,
    o_bias: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    skip: bool = True,
    key_padding_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    attn_bias: torch.Tensor | None = None,
    dropped_output: torch.Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int = 0,
    kv: torch.Tensor | None = None,
    num_kv_heads: int | None = None,
    kv_head: collections.abc.Sequence[int] | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    q_norm_weight: torch.Tensor | None = None,
    k_norm_weight: torch.Tensor | None = None,
    norm_eps: float = 1e-06,
    window: int | None = None,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    query_offset: int = 0,
) -> AttentionBlockCall: ...
def attention_flops(
    layout: HeadLayout, active_heads: float, tokens: int, active_kv_heads: float | None = None
) -> float: ...
def available_backends() -> list[str]: ...
def available_isas() -> list[str]: ...
def binomial_half_width(accuracy: float, examples: int) -> float: ...
def bootstrap_mean(
    values: torch.Tensor,
    *,
    over: str = "examples",
    resamples: int = 10000,
    confidence: float = 0.95,
    seed: int = 0,
) -> BootstrapInterval: ...
def calibrate(
    model: GatedModel,
    policy: AdjustablePolicy,
    data: DataSource,
    *,
    loss: str,
    bound: float | None,
    task: Objective | None,
    grid: collections.abc.Sequence[float],
    task_field: str,
    method: str,
    risk: float,
    delta: float,
    length_edges: collections.abc.Sequence[int],
    length_buckets: int,
    progress: collections.abc.Callable[[int, int], None] | None,
) -> Calibration: ...
def calibrate_trace(
    trace: PolicyTrace,
    *,
    method: str,
    risk: float,
    delta: float,
    length_edges: collections.abc.Sequence[int],
    length_buckets: int,
) -> Calibration: ...
def causal_head_gating(
    model: GatedModel,
    data: DataSource,
    objective: Objective,
    *,
    fits: int,
    start_steps: int,
    pressed_steps: int,
    pressure: float,
    learning_rate: float,
    seed: int,
    progress: collections.abc.Callable[[int, int], None] | None,
) -> CausalGating: ...
def check_randomisation(
    model: GatedModel,
    data: DataSource,
    policy: GatePolicy,
    *,
    other: GatePolicy | None,
    limit: float,
    resamples: int,
    seed: int,
) -> RandomisationCheck: ...
def code_attention(
    probabilities: torch.Tensor,
    *,
    valid: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
) -> list[CodedAttention]: ...
def conformal_risk_control(
    losses: torch.Tensor, grid: torch.Tensor, *, risk: float = 0.05, bound: float = 1.0
) -> ConformalResult: ...
def conformal_samples_needed(risk: float, bound: float = 1.0) -> int: ...
def data_hash(data: DataSource) -> str: ...
def decompose_gate(
    hidden: torch.Tensor,
    *,
    weight: torch.Tensor,
    reference: torch.Tensor,
    base: torch.Tensor,
    valid: torch.Tensor | None = None,
    rule: str = "threshold",
    threshold: float = 0.0,
    k: int = 0,
    budget: float = 0.0,
    cost: torch.Tensor | None = None,
    fixed: torch.Tensor | None = None,
    min_heads: int = 0,
) -> GateDecomposition: ...
def describe_encoder(model: Encoder) -> ModelFolder: ...
def describe_model(model: GatedModel, base_fingerprint: str = "") -> ModelFolder: ...
def effect_faithfulness(
    model: GatedModel,
    batch: collections.abc.Mapping[str, torch.Tensor],
    effects: collections.abc.Sequence[InputEffects],
    *,
    by: str,
    reference: DataSource | None,
    dropped_output: torch.Tensor | None,
    grid: str,
    random_orders: int,
    beam_width: int,
    seed: int,
) -> list[Faithfulness]: ...
def encoder_flops(
    layout: HeadLayout, active_heads: float, tokens: int, active_kv_heads: float | None = None
) -> float: ...
def explain_decisions(
    model: GatedModel,
    batch: collections.abc.Mapping[str, torch.Tensor],
    policy: GatePolicy,
    *,
    logit_spread: torch.Tensor | None,
    removals: int,
    listed_parts: int,
    first_input: int,
    units: collections.abc.Sequence[collections.abc.Sequence[InputUnit]],
    about: str,
) -> list[DecisionRecord]: ...
def explanation_stability(
    runs: collections.abc.Sequence[
        tuple[str, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]
    ],
    *,
    axis: str,
    resamples: int,
    seed: int,
) -> ExplanationStability: ...
def faithful_interactions(
    worth: collections.abc.Callable[[torch.Tensor], torch.Tensor] | None,
    players: int,
    *,
    sets: int,
    seed: int = 0,
) -> FaithfulInteractions: ...
def faithfulness(
    order: collections.abc.Sequence[int],
    value: collections.abc.Callable | None,
    *,
    grid: str = "eraser",
    random_orders: int = 50,
    beam_width: int = 0,
    seed: int = 0,
    metric: str = "",
    ablation: str = "",
) -> Faithfulness: ...
def feed_forward_backend(
    x: torch.Tensor,
    weights: FeedForwardWeights,
    *,
    activation: str = "gelu",
    block_size: int = 32,
    gate: torch.Tensor | None = None,
    prefix: torch.Tensor | None = None,
    skip: bool = True,
    dropped_output: torch.Tensor | None = None,
) -> BackendChoice: ...
def feed_forward_flops(layout: HeadLayout, tokens: int) -> float: ...
def find_audio_roles(
    model: GatedModel,
    data: DataSource,
    hop: float,
    times: collections.abc.Sequence[collections.abc.Sequence[float]] | None,
    measure: RoleMeasure,
    progress: collections.abc.Callable[[int, int], None] | None,
) -> RoleTable: ...
def find_gold_alignment(
    model: GatedModel,
    data: DataSource,
    targets: collections.abc.Sequence[collections.abc.Sequence[int]],
    candidates: collections.abc.Sequence[collections.abc.Sequence[int]],
    cross: bool,
    measure: RoleMeasure,
    progress: collections.abc.Callable[[int, int], None] | None,
) -> RoleTable: ...
def find_image_roles(
    model: GatedModel,
    data: DataSource,
    grid: PatchGrid,
    masks: torch.Tensor | None,
    measure: RoleMeasure,
    progress: collections.abc.Callable[[int, int], None] | None,
) -> RoleTable: ...
def find_syntactic_roles(
    model: GatedModel,
    data: DataSource,
    syntax: collections.abc.Sequence[SequenceSyntax],
    minimum_arcs: int,
    measure: RoleMeasure,
    progress: collections.abc.Callable[[int, int], None] | None,
) -> RoleTable: ...
def fisher_information(
    model: GatedModel,
    data: DataSource,
    objective: Objective,
    *,
    neurons: bool = True,
    keep_gradients: bool = False,
    progress: collections.abc.Callable[[int, int], None] | None = None,
) -> FisherInformation: ...
def fit_hybrid(
    model: GatedModel,
    train: DataSource,
    held_out: typing.Any,
    objective: Objective,
    *,
    mean_heads: float | None,
    flops: float | None,
    milliseconds: float | None,
    mechanism: str,
    order: str,
    neurons: str,
    head_shares: collections.abc.Sequence[float],
    block_shares: collections.abc.Sequence[float],
    compensate: bool,
    layer: int,
    features: collections.abc.Sequence[str],
    train_steps: int,
    learning_rate: float,
    examples: int,
    latency: LatencyModel | None,
    seed: int,
    progress: collections.abc.Callable[[int, int], None] | None,
) -> tuple[AdjustablePolicy, str]: ...
def fit_layer_gate(
    model: GatedModel,
    train: DataSource,
    calibration: DataSource,
    *,
    mean_heads: float,
    objective: Objective,
    features: collections.abc.Sequence[str],
    labels_of_data: bool,
    scores: HeadScores | None,
    dropped_output: torch.Tensor | None,
    ridge: float | None,
    huber: float,
    rank_weight: float,
    min_heads: int,
    settled_share: float,
    progress: collections.abc.Callable[[int, int], None] | None,
) -> tuple[LayerGate, LinearGateReport]: ...
def fit_linear_gate(
    model: GatedModel,
    train: DataSource,
    calibration: DataSource,
    *,
    mean_heads: float,
    objective: str | Objective = "cross_entropy",
    scores: HeadScores | None = None,
    dropped_output: torch.Tensor | None = None,
    ridge: float | None = None,
    huber: float = 1.345,
    rank_weight: float = 0.0,
    min_heads: int = 1,
    settled_share: float = 0.005,
    progress: collections.abc.Callable[[int, int], None] | None = None,
) -> tuple[LinearGate, LinearGateReport]: ...
def fit_linear_probes(
    model: GatedModel,
    data: DataSource,
    *,
    layers: collections.abc.Sequence[int],
    task: bool = True,
    labels_of_data: bool = False,
    objective: Objective | None = None,
    gates: GateSet | None = None,
    ridge: float | None = None,
    loss_ridge: float | None = None,
    huber: float = 1.345,
    progress: collections.abc.Callable[[int, int], None] | None = None,
) -> list[FittedProbe]: ...
def fit_reactivation(
    model: GatedModel,
    train: DataSource,
    calibration: DataSource,
    ladder: Ladder,
    *,
    layer: int,
    signal: str = "probe_confidence",
    mean_heads: float | None = None,
    flops_share: float | None = None,
    objective: str | None = None,
    progress: collections.abc.Callable[[int, int], None] | None = None,
) -> tuple[Reactivation, ReactivationReport]: ...
def fit_second_look(
    model: GatedModel,
    data: DataSource,
    gate: AdjustablePolicy,
    *,
    band_share: float,
    progress: collections.abc.Callable[[int, int], None] | None,
) -> SecondLook: ...
def for_each_attention(
    model: GatedModel,
    data: DataSource,
    visit: collections.abc.Callable[[SampleAttention], None] | None,
    *,
    gates: GateSet = ...,
    output_norms: bool = False,
    progress: collections.abc.Callable[[int, int], None] | None = None,
) -> None: ...
def gate_simulatability(
    records: collections.abc.Sequence[DecisionRecord],
    shown_parts: int = 5,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Simulatability: ...
def gated_attention(
    x: torch.Tensor,
    weights: AttentionWeights,
    num_heads: int,
    *,
    gate: torch.Tensor | None = None,
    skip: bool = True,
    key_padding_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    attn_bias: torch.Tensor | None = None,
    dropped_output: torch.Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int = 0,
    kv: torch.Tensor | None = None,
    num_kv_heads: int | None = None,
    kv_head: collections.abc.Sequence[int] | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    q_norm_weight: torch.Tensor | None = None,
    k_norm_weight: torch.Tensor | None = None,
    norm_eps: float = 1e-06,
    window: int | None = None,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    query_offset: int = 0,
) -> torch.Tensor: ...
def gated_feed_forward(
    x: torch.Tensor,
    weights: FeedForwardWeights,
    *,
    activation: str = "gelu",
    block_size: int = 32,
    gate: torch.Tensor | None = None,
    prefix: torch.Tensor | None = None,
    skip: bool = True,
    dropped_output: torch.Tensor | None = None,
) -> torch.Tensor: ...
def gini(values: collections.abc.Sequence[float]) -> float | None: ...
def hard_concrete_closed_probability(
    log_alpha: torch.Tensor, *, gamma: float = -0.1, zeta: float = 1.1, beta: float = 0.33
) -> torch.Tensor: ...
def hard_concrete_full_probability(
    log_alpha: torch.Tensor, *, gamma: float = -0.1, zeta: float = 1.1, beta: float = 0.33
) -> torch.Tensor: ...
def hard_concrete_open_probability(
    log_alpha: torch.Tensor, *, gamma: float = -0.1, zeta: float = 1.1, beta: float = 0.33
) -> torch.Tensor: ...
def hard_concrete_sample(
    log_alpha: torch.Tensor,
    uniform: torch.Tensor,
    *,
    gamma: float = -0.1,
    zeta: float = 1.1,
    beta: float = 0.33,
) -> torch.Tensor: ...
def hard_concrete_test_gate(
    log_alpha: torch.Tensor, *, gamma: float = -0.1, zeta: float = 1.1, beta: float = 0.33
) -> torch.Tensor: ...
def hard_subset(scores: torch.Tensor, k: int) -> torch.Tensor: ...
def harden(
    model: GatedModel,
    gates: LearnedGatesCore,
    data: DataSource,
    objective: Objective,
    *,
    draws: int,
    step: int,
    seed: int,
    progress: collections.abc.Callable[[int, int], None] | None = None,
) -> HardenedGates: ...
@typing.overload
def head_contexts(
    x: torch.Tensor,
    weights: AttentionWeights,
    num_heads: int,
    *,
    gate: torch.Tensor | None = None,
    skip: bool = True,
    key_padding_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    attn_bias: torch.Tensor | None = None,
    dropped_output: torch.Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int = 0,
    kv: torch.Tensor | None = None,
    num_kv_heads: int | None = None,
    kv_head: collections.abc.Sequence[int] | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    q_norm_weight: torch.Tensor | None = None,
    k_norm_weight: torch.Tensor | None = None,
    norm_eps: float = 1e-06,
    window: int | None = None,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    query_offset: int = 0,
) -> torch.Tensor: ...
@typing.overload
def head_contexts(
    x: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor | None,
    v_weight: torch.Tensor | None,
    o_weight: torch.Tensor,
    num_heads: int,
    *,
    q_bias: torch.Tensor | None = None,
    k_bias: torch.Tensor | None = None,
    v_bias: torch.Tensor | None = None,
    o_bias: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    skip: bool = True,
    key_padding_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    attn_bias: torch.Tensor | None = None,
    dropped_output: torch.Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int = 0,
    kv: torch.Tensor | None = None,
    num_kv_heads: int | None = None,
    kv_head: collections.abc.Sequence[int] | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    q_norm_weight: torch.Tensor | None = None,
    k_norm_weight: torch.Tensor | None = None,
    norm_eps: float = 1e-06,
    window: int | None = None,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    query_offset: int = 0,
) -> torch.Tensor: ...
def head_roles(model: GatedModel, data: DataSource, options: RoleOptions) -> RoleTable: ...
def head_usage(
    model: GatedModel,
    data: DataSource,
    policy: GatePolicy,
    *,
    classes: bool,
    class_names: collections.abc.Sequence[str],
    properties: collections.abc.Mapping[str, torch.Tensor],
    confidence: float,
    progress: collections.abc.Callable[[int, int], None] | None,
) -> CorpusReport: ...
def heads_for_share(values: collections.abc.Sequence[float], share: float = 0.9) -> int: ...
def holm(p_values: collections.abc.Sequence[float]) -> list[float]: ...
def html_report(
    records: collections.abc.Sequence[str],
    *,
    title: str = "",
    pictures: collections.abc.Sequence[str] = [],
    max_bytes: int = 5000000,
    detailed_heads: int = -1,
) -> str: ...
def input_attention(
    model: GatedModel,
    batch: collections.abc.Mapping[str, torch.Tensor],
    *,
    gates: GateSet = ...,
    sinks: torch.Tensor | None = None,
) -> list[list[CodedAttention | None]]: ...
def input_importance(
    model: GatedModel,
    data: DataSource,
    *,
    objective: Objective,
    blocks: bool,
    dropped_output: torch.Tensor | None,
    dropped_blocks: torch.Tensor | None,
    progress: collections.abc.Callable[[int, int], None] | None,
) -> tuple[torch.Tensor, torch.Tensor | None]: ...
def input_roles(
    model: GatedModel, data: DataSource, dataset: RoleTable, options: RoleOptions
) -> list[RoleTable]: ...
def integer_score_norm(queries: torch.Tensor, keys: torch.Tensor, scale: float) -> float: ...
def join_gates(before: GateSet, after: GateSet, layer: int, samples: int) -> GateSet: ...
def kendall_tau(
    a: collections.abc.Sequence[float], b: collections.abc.Sequence[float]
) -> float: ...
def learn_then_test(
    losses: torch.Tensor,
    grid: torch.Tensor,
    *,
    risk: float = 0.05,
    delta: float = 0.1,
    bound: float = 1.0,
) -> LearnThenTestResult: ...
def learn_then_test_samples_needed(risk: float, delta: float = 0.1, bound: float = 1.0) -> int: ...
def learned_gate_scores(gates: LearnedGatesCore, parameter: str = "") -> HeadScores: ...
def load_encoder(
    folder: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    dtype: torch.dtype | None = None,
) -> SavedEncoder: ...
def logit_spread(model: GatedModel, data: DataSource, policy: GatePolicy) -> torch.Tensor: ...
def make_ladder(
    model: GatedModel,
    *,
    head_shares: collections.abc.Sequence[float],
    scores: HeadScores | None = None,
    order: collections.abc.Sequence[HeadId] | None = None,
    neuron_scores: torch.Tensor | None = None,
    block_shares: collections.abc.Sequence[float] = [],
    min_heads_per_layer: int = 0,
    min_blocks_per_layer: int = 0,
    common_layers: int = 0,
    data: DataSource | None = None,
    progress: collections.abc.Callable[[int, int], None] | None = None,
) -> Ladder: ...
def make_objective(name: str) -> Objective: ...
def make_output_metric(name: str) -> OutputMetric: ...
def make_work_list(gate: torch.Tensor) -> WorkList: ...
def mask_stability(masks: collections.abc.Sequence[HeadMask], confidence: float) -> Stability: ...
def mcnemar(a: torch.Tensor, b: torch.Tensor) -> McNemarTest: ...
def mean_block_outputs(
    model: GatedModel,
    data: DataSource,
    *,
    gates: GateSet = ...,
    progress: collections.abc.Callable[[int, int], None] | None = None,
) -> torch.Tensor: ...
def mean_effects(
    inputs: collections.abc.Sequence[InputEffects],
    *,
    confidence: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
) -> InputEffects: ...
def mean_head_outputs(
    model: GatedModel,
    data: DataSource,
    *,
    gates: GateSet = ...,
    decide: collections.abc.Callable[[ModelState], GateSet] | None = None,
    progress: collections.abc.Callable[[int, int], None] | None = None,
) -> torch.Tensor: ...
def mean_neuron_activations(
    model: GatedModel,
    data: DataSource,
    *,
    gates: GateSet = ...,
    progress: collections.abc.Callable[[int, int], None] | None = None,
) -> torch.Tensor: ...
def measure_effects(
    model: GatedModel,
    batch: collections.abc.Mapping[str, torch.Tensor],
    metric: OutputMetric | None,
    *,
    ablation: str,
    gates: GateSet | HeadMask | torch.Tensor,
    policy: GatePolicy | None,
    reference: DataSource | None,
    target: torch.Tensor | None,
    distractor: torch.Tensor | None,
    position: torch.Tensor | None,
    toggles: bool,
    path_nodes: int,
    pair_heads: int,
    game_heads: int,
    orders: int,
    interaction: str,
    draws: int,
    confidence: float,
    bootstrap: int,
    seed: int,
    progress: collections.abc.Callable[[int, int], None] | None,
) -> list[InputEffects]: ...
def measure_latency(
    model: GatedModel,
    batch: collections.abc.Mapping[str, torch.Tensor],
    *,
    layer: int,
    neuron_entries: int,
    repeats: int,
) -> LatencyTables: ...
def metric_agreement(
    metrics: collections.abc.Sequence[tuple[str, torch.Tensor]],
    *,
    over_examples: bool,
    resamples: int,
    seed: int,
) -> MetricAgreement: ...
def needed_units(
    importance: torch.Tensor, *, mean_units: float, present: torch.Tensor | None = None
) -> torch.Tensor: ...
def objective_names() -> list[str]: ...
def offset_baselines(
    chosen_on: collections.abc.Sequence[SequenceSyntax],
    scored_on: collections.abc.Sequence[SequenceSyntax],
) -> list[OffsetBaseline]: ...
def order_neurons(model: GatedModel, order: torch.Tensor) -> None: ...
def output_confidence(logits: torch.Tensor) -> torch.Tensor: ...
def output_metric_names() -> list[str]: ...
def pair_statistics(
    x: torch.Tensor,
    weights: AttentionWeights,
    num_heads: int,
    *,
    gate: torch.Tensor | None = None,
    skip: bool = True,
    key_padding_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    attn_bias: torch.Tensor | None = None,
    dropped_output: torch.Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int = 0,
    kv: torch.Tensor | None = None,
    num_kv_heads: int | None = None,
    kv_head: collections.abc.Sequence[int] | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    q_norm_weight: torch.Tensor | None = None,
    k_norm_weight: torch.Tensor | None = None,
    norm_eps: float = 1e-06,
    window: int | None = None,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    query_offset: int = 0,
) -> PairStatistics: ...
def paired_bootstrap(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    over: str = "examples",
    resamples: int = 10000,
    confidence: float = 0.95,
    seed: int = 0,
) -> BootstrapInterval: ...
def parse_conllu(content: str, source: str = "text") -> list[DependencySentence]: ...
def peak_flops(dtype: str = "float32", seconds: float = 0.02) -> float: ...
def pearson(a: collections.abc.Sequence[float], b: collections.abc.Sequence[float]) -> float: ...
def policies() -> dict: ...
def policy_from_json(text: str) -> GatePolicy: ...
def pooled_state(
    hidden: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor: ...
def prune(
    model: GatedModel,
    data: DataSource,
    method: str,
    objective: Objective,
    *,
    keep: float,
    per_layer: bool,
    min_per_layer: int,
    rounding: str,
    compensate: bool,
    settings: str,
    progress: collections.abc.Callable[[int, int], None] | None = None,
) -> StaticPruning: ...
def prune_by_scores(
    model: GatedModel,
    data: DataSource,
    scores: HeadScores,
    *,
    keep: float,
    per_layer: bool,
    min_per_layer: int,
    rounding: str,
    compensate: bool,
    progress: collections.abc.Callable[[int, int], None] | None = None,
) -> StaticPruning: ...
def prune_top_fraction(
    scores: HeadScores,
    keep: float = 0.5,
    *,
    per_layer: bool = False,
    min_per_layer: int = 0,
    rounding: str = "nearest",
    candidates: HeadMask | None = None,
) -> HeadMask: ...
def pruners() -> dict: ...
def rank_biased_overlap(
    a: collections.abc.Sequence[float], b: collections.abc.Sequence[float], p: float = 0.9
) -> float: ...
def read_conllu(path: str | os.PathLike[str]) -> list[DependencySentence]: ...
def read_decision_records(lines: str) -> list[DecisionRecord]: ...
def read_model_folder(folder: str | os.PathLike[str]) -> ModelFolder: ...
def read_safetensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]: ...
def reference_attention(
    x: torch.Tensor,
    weights: AttentionWeights,
    num_heads: int,
    *,
    gate: torch.Tensor | None = None,
    skip: bool = True,
    key_padding_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    attn_bias: torch.Tensor | None = None,
    dropped_output: torch.Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int = 0,
    kv: torch.Tensor | None = None,
    num_kv_heads: int | None = None,
    kv_head: collections.abc.Sequence[int] | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    q_norm_weight: torch.Tensor | None = None,
    k_norm_weight: torch.Tensor | None = None,
    norm_eps: float = 1e-06,
    window: int | None = None,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    query_offset: int = 0,
) -> torch.Tensor: ...
def reference_feed_forward(
    x: torch.Tensor,
    weights: FeedForwardWeights,
    *,
    activation: str = "gelu",
    block_size: int = 32,
    gate: torch.Tensor | None = None,
    prefix: torch.Tensor | None = None,
    skip: bool = True,
    dropped_output: torch.Tensor | None = None,
) -> torch.Tensor: ...
def refresh_packed_weights() -> None: ...
def relaxed_subset(scores: torch.Tensor, k: int, temperature: float) -> torch.Tensor: ...
def removal_order(scores: HeadScores, min_per_layer: int = 0) -> list[HeadId]: ...
def remove_heads(
    model: GatedModel, mask: HeadMask, dropped_output: torch.Tensor | None = None
) -> None: ...
def remove_units(model: GatedModel, gates: GateSet) -> None: ...
def report_picture(record: str) -> str: ...
def restore_model(model: GatedModel, content: ModelFolder, check_base: bool = True) -> None: ...
def role_registry() -> dict: ...
def run_policy(
    model: GatedModel,
    batch: collections.abc.Mapping[str, torch.Tensor],
    policy: GatePolicy,
    *,
    record: bool = False,
    first_input: int = 0,
    weights_sha256: str = "",
) -> PolicyRun: ...
def rung_flops(
    model: GatedModel, rung: Rung, tokens: float, *, first: int = 0, last: int = -1
) -> float: ...
def scalar_features() -> list[str]: ...
def score(
    model: GatedModel,
    data: DataSource,
    metric: str,
    objective: Objective,
    *,
    granularity: str,
    normalization: str,
    denominator: str,
    confidence: float,
    bootstrap: int,
    seed: int,
    dropped_output: torch.Tensor | None = None,
    settings: str = "{}",
    progress: collections.abc.Callable[[int, int], None] | None = None,
) -> HeadScores: ...
def score_agreement(
    series: collections.abc.Sequence[tuple[str, torch.Tensor]],
    *,
    over_examples: bool,
    top_k: int,
    confidence: float,
    resamples: int,
    seed: int,
) -> Agreement: ...
def scorers() -> dict: ...
def sentence_embedding(
    hidden: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor: ...
def shapley_interactions(worth: torch.Tensor) -> torch.Tensor: ...
def shapley_values(values: torch.Tensor) -> torch.Tensor: ...
def shared_examples(data: DataSource, other: DataSource) -> int: ...
def show_config() -> str: ...
def slice_heads(
    weights: AttentionWeights,
    num_heads: int,
    kept: collections.abc.Sequence[int],
    added_output: torch.Tensor | None = None,
    kv_head: collections.abc.Sequence[int] | None = None,
) -> AttentionWeights: ...
def slice_neurons(
    weights: FeedForwardWeights,
    kept: collections.abc.Sequence[int],
    added_output: torch.Tensor | None = None,
) -> FeedForwardWeights: ...
def sort_neurons(model: GatedModel, scores: torch.Tensor) -> torch.Tensor: ...
def spearman(a: collections.abc.Sequence[float], b: collections.abc.Sequence[float]) -> float: ...
def static_layer_gate(
    model: GatedModel, scores: torch.Tensor, heads: int, dropped_output: torch.Tensor | None = None
) -> LayerGate: ...
def static_linear_gate(
    model: GatedModel, scores: torch.Tensor, heads: int, dropped_output: torch.Tensor | None = None
) -> LinearGate: ...
def static_stage(
    needed: torch.Tensor, *, settled_share: float = 0.005, present: torch.Tensor | None = None
) -> StaticStage: ...
def summarise_record(record: str) -> list[SummaryLine]: ...
def toggle_correlation(toggles: collections.abc.Sequence[AuditToggle]) -> float: ...
def top_k_overlap(
    a: collections.abc.Sequence[float], b: collections.abc.Sequence[float], k: int
) -> TopKOverlap: ...
def trace_policy(
    model: GatedModel,
    policy: AdjustablePolicy,
    data: DataSource,
    *,
    loss: str,
    bound: float | None,
    task: Objective | None,
    grid: collections.abc.Sequence[float],
    task_field: str,
    progress: collections.abc.Callable[[int, int], None] | None,
) -> PolicyTrace: ...
def train_gates(
    model: GatedModel,
    gates: LearnedGatesCore,
    data: DataSource,
    objective: Objective,
    *,
    steps: int,
    learning_rate: float,
    max_norm: float,
    weight_learning_rate: float,
    weight_decay: float,
    max_weight_norm: float,
    first_step: int,
    seed: int,
    teacher: GatedModel | None = None,
    distillation: LayerDistillation | None = None,
    progress: collections.abc.Callable[[int, int], None] | None = None,
) -> GateTraining: ...
def train_input_gates(
    model: GatedModel,
    start: GatePolicy,
    train: DataSource,
    calibration: DataSource,
    *,
    objective: Objective,
    budget: float,
    steps: int,
    relaxation: str,
    temperature: float,
    start_spread: float,
    weight_penalty: float,
    ramp_steps: int,
    costs: torch.Tensor | None,
    learning_rate: float,
    weight_learning_rate: float,
    model_learning_rate: float,
    settled_share: float,
    compensate: bool,
    draws: int,
    seed: int,
    teacher: GatedModel | None,
    progress: collections.abc.Callable[[int, int], None] | None,
) -> tuple[GatePolicy, InputGateReport]: ...
def train_ladder(
    model: GatedModel,
    ladder: Ladder,
    data: DataSource,
    *,
    distillation: Objective,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    max_norm: float,
    task: Objective | None,
    task_weight: float,
    teacher: GatedModel | None,
    compensate: bool,
    seed: int,
    progress: collections.abc.Callable[[int, int], None] | None,
) -> LadderTraining: ...
def tune_hies(
    model: GatedModel,
    data: DataSource,
    validation: DataSource,
    objective: Objective,
    *,
    keep: float,
    alphas: collections.abc.Sequence[float],
    per_layer: bool,
    min_per_layer: int,
    rounding: str,
    normalization: str,
    progress: collections.abc.Callable[[int, int], None] | None = None,
) -> HiesTuning: ...
def two_proportion_z(share_a: float, n_a: int, share_b: float, n_b: int) -> float: ...
def unit_macs(layout: HeadLayout, tokens: float, matrices: int = 2) -> UnitCosts: ...
def unit_parameters(layout: HeadLayout, matrices: int = 2) -> UnitCosts: ...
def with_sentence_embedding(model: GatedModel) -> GatedModel: ...
def with_sentence_probe(
    model: GatedModel, weight: torch.Tensor, bias: torch.Tensor
) -> GatedModel: ...
def write_model_folder(folder: str, content: ModelFolder) -> None: ...
def write_safetensors(
    path: str | os.PathLike[str],
    tensors: collections.abc.Mapping[str, torch.Tensor],
    metadata: collections.abc.Mapping[str, str] = {},
) -> str: ...

RECORD_SCHEMA: str = "2.0"
ROLE_REGISTRY: str = "1"
__version__: str = "0.1.0"
torch_version: str = "2.15.0"
