#include <headkit/core/error.h>
#include <headkit/pruners/hies_tuning.h>
#include <headkit/pruners/latency_table.h>
#include <headkit/pruners/mean_activation.h>
#include <headkit/pruners/mean_output.h>
#include <headkit/pruners/prune_by_scores.h>
#include <headkit/pruners/pruner.h>
#include <headkit/pruners/removal.h>

#include "optional_tensor.h"
#include "python_progress.h"
#include "registry.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

KeepRounding rounding_of(const std::string& name) {
  if (name == "nearest") return KeepRounding::kNearest;
  if (name == "up") return KeepRounding::kUp;
  if (name == "down") return KeepRounding::kDown;
  throw std::invalid_argument(
      error_message("prune", "rounding nearest, up or down", "'", name, "'"));
}

PruneOptions prune_options(double keep, bool per_layer, int64_t min_per_layer,
                           const std::string& rounding, bool compensate, Progress progress) {
  PruneOptions options;
  options.share = {.keep = keep,
                   .per_layer = per_layer,
                   .min_per_layer = min_per_layer,
                   .rounding = rounding_of(rounding)};
  options.score.progress = interruptible(std::move(progress));
  options.compensate = compensate;
  return options;
}

}  // namespace

void register_pruners(py::module_& m) {
  m.def(
      "pruners", [] { return registry_dict(pruners()); },
      R"pbdoc(
What can be asked of ``prune``: method -> definition, source, cost, needs, budget (what ``keep`` is a
share of) and settings (a dictionary: keyword argument -> meaning).

Returns:
    dict[str, dict]: by registry name.
Example:
    >>> headkit.pruners()["random"]["cost"]
    'none'
    >>> list(headkit.pruners()["backward_elimination"]["settings"])
    ['step', 'shortlist']
)pbdoc");

  py::class_<StaticPruning>(m, "StaticPruning", R"pbdoc(
What a static pruner decided: what ``headkit.apply`` takes where a mask does not say everything.

Args:
    heads: HeadMask of the heads that stay.
    gates: GateSet of what goes or changes beyond the mask; None = nothing.
    details: JSON object in a string.
    dropped_neurons: what the activations of neurons that go are instead of 0, shape [layers,
        neurons]; goes into the output biases.
Attributes:
    heads: HeadMask.
    gates: GateSet; gates of heads and ``dropped_output`` are folded into the weights.
    details: dict: method, settings, the course of the search.
    heads_only: whether the mask says everything.
    refits: output projections that get new weights beside.
Example:
    >>> headkit.StaticPruning(headkit.HeadMask(torch.ones(2, 4)))
    StaticPruning(8 of 8 heads)
)pbdoc")
      .def(py::init([](HeadMask heads, const std::optional<GateSet>& gates, std::string details,
                       const std::optional<at::Tensor>& dropped_neurons) {
             return StaticPruning{.heads = std::move(heads),
                                  .gates = gates.value_or(GateSet()),
                                  .dropped_neurons = or_undefined(dropped_neurons),
                                  .details = std::move(details)};
           }),
           py::arg("heads"), py::arg("gates") = py::none(), py::arg("details") = "{}",
           py::arg("dropped_neurons") = py::none())
      .def_readonly("heads", &StaticPruning::heads)
      .def_readonly("gates", &StaticPruning::gates)
      .def_property_readonly(
          "dropped_neurons",
          [](const StaticPruning& pruning) { return or_none(pruning.dropped_neurons); })
      .def_property_readonly("details",
                             [](const StaticPruning& pruning) {
                               return py::module_::import("json").attr("loads")(pruning.details);
                             })
      .def_property_readonly("heads_only", &StaticPruning::heads_only)
      .def_property_readonly("refits",
                             [](const StaticPruning& pruning) { return pruning.refits.size(); })
      .def("all_gates", &StaticPruning::all_gates,
           "The mask and the gates beyond it in one GateSet, as ``headkit.apply`` takes it.")
      .def("__repr__", [](const StaticPruning& pruning) {
        std::string text = "StaticPruning(" + std::to_string(pruning.heads.count()) + " of " +
                           std::to_string(pruning.heads.layers() * pruning.heads.heads()) +
                           " heads";
        if (const at::Tensor& neurons = pruning.gates.neurons; neurons.defined()) {
          text += ", " + std::to_string(neurons.ne(0).sum().item<int64_t>()) + " of " +
                  std::to_string(neurons.numel()) + " neurons";
        }
        if (!pruning.refits.empty()) {
          text += ", " + std::to_string(pruning.refits.size()) + " output projections re-fitted";
        }
        if (pruning.gates.dropped_output.defined()) text += ", mean outputs of those that go";
        return text + ")";
      });

  m.def(
      "prune",
      [](GatedModel& model, const DataSource& data, const std::string& method,
         const Objective& objective, double keep, bool per_layer, int64_t min_per_layer,
         const std::string& rounding, bool compensate, const std::string& settings,
         Progress progress) {
        PruneOptions options = prune_options(keep, per_layer, min_per_layer, rounding, compensate,
                                             std::move(progress));
        options.settings = settings;
        return prune(model, data, objective, method, options);
      },
      py::arg("model"), py::arg("data"), py::arg("method"), py::arg("objective"), py::kw_only(),
      py::arg("keep"), py::arg("per_layer"), py::arg("min_per_layer"), py::arg("rounding"),
      py::arg("compensate"), py::arg("settings"), py::arg("progress") = nullptr, Unlocked(),
      "See headkit.prune.");

  m.def(
      "prune_by_scores",
      [](GatedModel& model, const DataSource& data, const HeadScores& scores, double keep,
         bool per_layer, int64_t min_per_layer, const std::string& rounding, bool compensate,
         Progress progress) {
        return prune_by_scores(model, data, scores,
                               prune_options(keep, per_layer, min_per_layer, rounding, compensate,
                                             std::move(progress)));
      },
      py::arg("model"), py::arg("data"), py::arg("scores"), py::kw_only(), py::arg("keep"),
      py::arg("per_layer"), py::arg("min_per_layer"), py::arg("rounding"), py::arg("compensate"),
      py::arg("progress") = nullptr, Unlocked(), "See headkit.prune.");

  m.def("apply_pruning", &apply_pruning, py::arg("model"), py::arg("pruning"), Unlocked(),
        "See headkit.apply.");

  m.def(
      "measure_latency",
      [](GatedModel& model, const Batch& batch, int64_t layer, int64_t neuron_entries,
         int64_t repeats) {
        return measure_latency(
            model, batch, {.layer = layer, .neuron_entries = neuron_entries, .repeats = repeats});
      },
      py::arg("model"), py::arg("batch"), py::kw_only(), py::arg("layer"),
      py::arg("neuron_entries"), py::arg("repeats"), Unlocked(), "See headkit.measure_latency.");
  py::class_<LatencyTables>(m, "LatencyTables", "Seconds; see headkit.measure_latency.")
      .def_readonly("heads", &LatencyTables::heads)
      .def_readonly("neurons", &LatencyTables::neurons)
      .def_readonly("other", &LatencyTables::other);

  m.def(
      "prune_top_fraction",
      [](const HeadScores& scores, double keep, bool per_layer, int64_t min_per_layer,
         const std::string& rounding, const std::optional<HeadMask>& candidates) {
        return prune_top_fraction(scores, {.keep = keep,
                                           .per_layer = per_layer,
                                           .min_per_layer = min_per_layer,
                                           .rounding = rounding_of(rounding),
                                           .candidates = candidates.value_or(HeadMask())});
      },
      py::arg("scores"), py::arg("keep") = 0.5, py::kw_only(), py::arg("per_layer") = false,
      py::arg("min_per_layer") = 0, py::arg("rounding") = "nearest",
      py::arg("candidates") = py::none(), Unlocked(), R"pbdoc(
Keep the heads with the largest scores; ties go to the lower (layer, head).

Args:
    scores: HeadScores.
    keep: share of all heads that stay, 0 to 1.
    per_layer: the same share in every layer instead of one global ranking.
    min_per_layer: the best heads of each layer that are never removed.
    rounding: how the share becomes whole heads: ``nearest`` (half counts as one), ``up``, ``down``.
    candidates: heads that may stay; None = all.
Returns:
    HeadMask: what stays.
Raises:
    ValueError: if the share is outside 0 to 1 or the floor does not fit into it.
Source:
    Michel, Levy, Neubig 2019.
Example:
    >>> scores = headkit.HeadScores(torch.tensor([[3.0, 1.0], [2.0, 0.0]]))
    >>> headkit.prune_top_fraction(scores, 0.5).keep.tolist()
    [[True, False], [True, False]]
)pbdoc");

  m.def(
      "removal_order",
      [](const HeadScores& scores, int64_t min_per_layer) {
        return removal_order(scores, min_per_layer);
      },
      py::arg("scores"), py::arg("min_per_layer") = 0, Unlocked(), R"pbdoc(
All heads that may be removed, the first to go first.

Args:
    scores: HeadScores.
    min_per_layer: the best heads of each layer that are left out.
Returns:
    list[HeadId]
Example:
    >>> scores = headkit.HeadScores(torch.tensor([[3.0, 1.0], [2.0, 0.0]]))
    >>> [tuple(head) for head in headkit.removal_order(scores)]
    [(1, 1), (0, 1), (1, 0), (0, 0)]
)pbdoc");

  m.def(
      "slice_heads",
      [](const AttentionWeights& weights, int64_t num_heads, const std::vector<int64_t>& kept,
         const std::optional<at::Tensor>& added_output,
         const std::optional<std::vector<int64_t>>& kv_head) {
        return slice_heads(weights, num_heads, kept, or_undefined(added_output), kv_head);
      },
      py::arg("weights"), py::arg("num_heads"), py::arg("kept"),
      py::arg("added_output") = py::none(), py::arg("kv_head") = py::none(), Unlocked(), R"pbdoc(
The weights of some heads, copied: their rows of q and columns of o, and the rows of k and v of
exactly the KV heads that they read.

Args:
    weights: AttentionWeights of ``num_heads`` heads.
    num_heads: heads in ``weights``.
    kept: places of the heads that stay, ascending.
    added_output: shape [model_dim], folded into the output bias.
    kv_head: the KV head of each head, places within k and v; default evenly shared.
Returns:
    AttentionWeights
)pbdoc");

  m.def(
      "remove_heads",
      [](GatedModel& model, const HeadMask& mask, const std::optional<at::Tensor>& dropped_output) {
        remove_heads(model, mask, or_undefined(dropped_output));
      },
      py::arg("model"), py::arg("mask"), py::arg("dropped_output") = py::none(), Unlocked(),
      "See headkit.apply.");

  m.def(
      "slice_neurons",
      [](const FeedForwardWeights& weights, const std::vector<int64_t>& kept,
         const std::optional<at::Tensor>& added_output) {
        return slice_neurons(weights, kept, or_undefined(added_output));
      },
      py::arg("weights"), py::arg("kept"), py::arg("added_output") = py::none(), Unlocked(),
      R"pbdoc(
The weights of some neurons, copied: their rows of ``inner`` and ``up`` and columns of ``out``.

Args:
    weights: FeedForwardWeights.
    kept: places of the neurons that stay, ascending.
    added_output: shape [model_dim], folded into the output bias.
Returns:
    FeedForwardWeights
Example:
    >>> weights = headkit.FeedForwardWeights(torch.randn(24, 6), torch.randn(6, 24))
    >>> headkit.slice_neurons(weights, [0, 23]).out.shape
    torch.Size([6, 2])
)pbdoc");

  m.def("remove_units", &remove_units, py::arg("model"), py::arg("gates"), Unlocked(),
        "See headkit.apply.");

  m.def(
      "mean_head_outputs",
      [](GatedModel& model, const DataSource& data, const GateSet& gates,
         std::function<GateSet(const ModelState&)> decide, Progress progress) {
        return mean_head_outputs(model, data,
                                 {.gates = gates,
                                  .decide = std::move(decide),
                                  .progress = interruptible(std::move(progress))});
      },
      py::arg("model"), py::arg("data"), py::kw_only(), py::arg("gates") = GateSet(),
      py::arg("decide") = nullptr, py::arg("progress") = nullptr, Unlocked(),
      "See headkit.mean_head_outputs.");

  const auto means = [&m](const char* name, auto function, const char* see) {
    m.def(
        name,
        [function](GatedModel& model, const DataSource& data, const GateSet& gates,
                   Progress progress) {
          return function(model, data,
                          {.gates = gates, .progress = interruptible(std::move(progress))});
        },
        py::arg("model"), py::arg("data"), py::kw_only(), py::arg("gates") = GateSet(),
        py::arg("progress") = nullptr, Unlocked(), see);
  };
  means("mean_neuron_activations", &mean_neuron_activations,
        "See headkit.mean_neuron_activations.");
  means("mean_block_outputs", &mean_block_outputs, "See headkit.mean_block_outputs.");

  py::class_<HiesTuning>(m, "HiesTuning", R"pbdoc(
What ``headkit.tune_hies`` found.

Attributes:
    alpha: the one whose mask has the least loss.
    alphas: all that were tried, ascending.
    losses: mean loss of the validation data under the mask of each.
    masks: HeadMask of each.
    data_hash, validation_hash: ``headkit.data_hash`` of the data.
)pbdoc")
      .def_readonly("alpha", &HiesTuning::alpha)
      .def_readonly("alphas", &HiesTuning::alphas)
      .def_readonly("losses", &HiesTuning::losses)
      .def_readonly("masks", &HiesTuning::masks)
      .def_readonly("data_hash", &HiesTuning::data_hash)
      .def_readonly("validation_hash", &HiesTuning::validation_hash)
      .def("__repr__", [](const HiesTuning& tuning) {
        return c10::str("HiesTuning(alpha=", tuning.alpha, " of ", tuning.alphas.size(), ")");
      });
  m.def(
      "tune_hies",
      [](GatedModel& model, const DataSource& data, const DataSource& validation,
         const Objective& objective, double keep, const std::vector<double>& alphas, bool per_layer,
         int64_t min_per_layer, const std::string& rounding, const std::string& normalization,
         Progress progress) {
        HiesTuningOptions options{.alphas = alphas,
                                  .share = {.keep = keep,
                                            .per_layer = per_layer,
                                            .min_per_layer = min_per_layer,
                                            .rounding = rounding_of(rounding)}};
        options.score.normalization = normalization;
        options.score.progress = interruptible(std::move(progress));
        return tune_hies(model, data, validation, objective, options);
      },
      py::arg("model"), py::arg("data"), py::arg("validation"), py::arg("objective"), py::kw_only(),
      py::arg("keep"), py::arg("alphas"), py::arg("per_layer"), py::arg("min_per_layer"),
      py::arg("rounding"), py::arg("normalization"), py::arg("progress") = nullptr, Unlocked(),
      "See headkit.tune_hies.");
}

}  // namespace headkit::bindings
