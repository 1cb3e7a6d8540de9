#include <headkit/explain/corpus_view.h>
#include <headkit/explain/effect_faithfulness.h>
#include <headkit/explain/explanation_stability.h>
#include <headkit/explain/faithfulness.h>
#include <headkit/explain/head_usage.h>
#include <headkit/explain/metric_agreement.h>
#include <headkit/explain/simulatability.h>
#include <headkit/gates/gate_policy.h>
#include <headkit/scorers/rank_biased_overlap.h>
#include <pybind11/functional.h>

#include "optional_tensor.h"
#include "python_data.h"
#include "python_progress.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

void register_faithfulness(py::module_& m) {
  py::class_<FaithfulnessCurve>(m, "FaithfulnessCurve", R"pbdoc(
One quantity along an order of heads, at the counts of the grid.

Attributes:
    values, inverse: of the order and of the reversed one.
    random_lower, random_upper, random_mean: 5 %, 95 % and mean of random orders.
)pbdoc")
      .def_readonly("values", &FaithfulnessCurve::values)
      .def_readonly("inverse", &FaithfulnessCurve::inverse)
      .def_readonly("random_lower", &FaithfulnessCurve::random_lower)
      .def_readonly("random_upper", &FaithfulnessCurve::random_upper)
      .def_readonly("random_mean", &FaithfulnessCurve::random_mean);
  py::class_<Aopc>(m, "Aopc", R"pbdoc(
Area over the perturbation curve: the mean of a curve over a grid.

Attributes:
    grid: "eraser" (1, 5, 10, 20, 50 %) or "all" (every count).
    value, inverse, random_lower, random_upper: of the order, the reversed one, 5 and 95 % of random
        ones.
    lowest, highest, normalised: bounds over all orders, and where the value lies between; None where
        they were not computed.
    beats_random: outside the random band, on the better side.
)pbdoc")
      .def_readonly("grid", &Aopc::grid)
      .def_readonly("value", &Aopc::value)
      .def_readonly("inverse", &Aopc::inverse)
      .def_readonly("random_lower", &Aopc::random_lower)
      .def_readonly("random_upper", &Aopc::random_upper)
      .def_readonly("lowest", &Aopc::lowest)
      .def_readonly("highest", &Aopc::highest)
      .def_readonly("normalised", &Aopc::normalised)
      .def_readonly("beats_random", &Aopc::beats_random);
  py::class_<Faithfulness>(m, "Faithfulness", R"pbdoc(
How well an order of heads tells which of them a metric depends on; see ``headkit.faithfulness``.

Attributes:
    k: counts of heads at which the curves are taken.
    comprehensiveness: m(all) - m(all without the top k); higher is better.
    sufficiency: m(all) - m(top k only); lower is better.
    comprehensiveness_aopc, sufficiency_aopc: an Aopc for each grid.
    value_all, value_none: m with all heads and with none.
    bounds, beam_width: how the bounds of the normalised AOPC were found: "exact", "beam" or "".
)pbdoc")
      .def_readonly("order", &Faithfulness::order)
      .def_readonly("k", &Faithfulness::k)
      .def_readonly("value_all", &Faithfulness::value_all)
      .def_readonly("value_none", &Faithfulness::value_none)
      .def_readonly("comprehensiveness", &Faithfulness::comprehensiveness)
      .def_readonly("sufficiency", &Faithfulness::sufficiency)
      .def_readonly("comprehensiveness_aopc", &Faithfulness::comprehensiveness_aopc)
      .def_readonly("sufficiency_aopc", &Faithfulness::sufficiency_aopc)
      .def_readonly("bounds", &Faithfulness::bounds)
      .def_readonly("beam_width", &Faithfulness::beam_width)
      .def("to_json", &Faithfulness::to_json);
  m.def(
      "faithfulness",
      [](const std::vector<int64_t>& order, const py::function& value, const std::string& grid,
         int64_t random_orders, int64_t beam_width, uint64_t seed, const std::string& metric,
         const std::string& ablation) {
        const SetValue of_sets = [&](const at::Tensor& sets) {
          return value(sets).cast<at::Tensor>();
        };
        return faithfulness(order, of_sets,
                            {.grid = grid,
                             .random_orders = random_orders,
                             .seed = seed,
                             .beam_width = beam_width,
                             .metric = metric,
                             .ablation = ablation});
      },
      py::arg("order"), py::arg("value"), py::kw_only(), py::arg("grid") = "eraser",
      py::arg("random_orders") = 50, py::arg("beam_width") = 0, py::arg("seed") = 0,
      py::arg("metric") = "", py::arg("ablation") = "", R"pbdoc(
Test an order of heads: what m loses without its top, and with its top only.

Random orders and the inverse are always drawn beside it: inside the random band the claim fails.

Args:
    order: places of n heads, most important first.
    value: function of bool [N, n] (True = the head is left) that gives m of each set, [N].
    grid: "eraser" (1, 5, 10, 20, 50 % of n, rounded up) or "all" (every count; tells both).
    random_orders: that are drawn. seed: of the draw.
    beam_width: of the search for the bounds of the normalised AOPC with more than 8 heads; 0 = no
        bounds there. With at most 8 heads they are exact.
    metric, ablation: names, told in the result.
Returns:
    Faithfulness.
Raises:
    ValueError: unless ``order`` is a permutation, and for values that are not finite.
Source:
    DeYoung et al. 2020 (ERASER); normalised AOPC after Edin et al. 2024 (2408.08137).
Example:
    >>> worth = torch.tensor([3.0, 1.0, 2.0])
    >>> found = headkit.faithfulness([0, 2, 1], lambda sets: (sets * worth).sum(1), grid="all")
    >>> found.comprehensiveness.values
    [3.0, 5.0, 6.0]
    >>> found.comprehensiveness_aopc[1].normalised
    1.0
)pbdoc");
  m.def(
      "effect_faithfulness",
      [](GatedModel& model, const Batch& batch, const std::vector<InputEffects>& effects,
         const std::string& by, const std::optional<std::shared_ptr<DataSource>>& reference,
         const std::optional<at::Tensor>& dropped_output, const std::string& grid,
         int64_t random_orders, int64_t beam_width, uint64_t seed) {
        if (effects.empty())
          throw py::value_error("[effect_faithfulness] expected effects; found none");
        return effect_faithfulness(model, batch, *make_output_metric(effects[0].metric), effects,
                                   {.by = by,
                                    .reference = reference ? reference->get() : nullptr,
                                    .dropped_output = or_undefined(dropped_output),
                                    .curves = {.grid = grid,
                                               .random_orders = random_orders,
                                               .seed = seed,
                                               .beam_width = beam_width}});
      },
      py::arg("model"), py::arg("batch"), py::arg("effects"), py::kw_only(), py::arg("by"),
      py::arg("reference"), py::arg("dropped_output"), py::arg("grid"), py::arg("random_orders"),
      py::arg("beam_width"), py::arg("seed"), Unlocked(), "See headkit.effect_faithfulness.");
  m.def(
      "gini", [](const std::vector<double>& values) { return gini(values); }, py::arg("values"),
      R"pbdoc(
Gini coefficient of magnitudes: 0 = all alike, near 1 = a few carry all. None where all are 0.

Example:
    >>> headkit.gini([0.0, 0.0, -3.0, 0.0])
    0.75
)pbdoc");
  m.def(
      "heads_for_share",
      [](const std::vector<double>& values, double share) {
        return heads_for_share(values, share);
      },
      py::arg("values"), py::arg("share") = 0.9, R"pbdoc(
The fewest values that carry this share of the sum of magnitudes.

Example:
    >>> headkit.heads_for_share([8.0, 0.5, -1.0, 0.5])
    2
)pbdoc");
}

void register_simulatability(py::module_& m) {
  py::class_<Simulatability>(m, "Simulatability", R"pbdoc(
How well decisions follow from what an explanation shows; see ``headkit.gate_simulatability``.

Attributes:
    inputs, shown_parts, decisions: how many.
    accuracy, lower, upper: of base + shown parts against the threshold; interval over inputs.
    majority, majority_by_head: what always saying the commoner decision gets, over all heads and
        for each by itself: the rate to beat.
    auroc, auroc_by_head: of the shown margin, pooled and mean over heads; None where undefined.
)pbdoc")
      .def_readonly("inputs", &Simulatability::inputs)
      .def_readonly("shown_parts", &Simulatability::shown_parts)
      .def_readonly("decisions", &Simulatability::decisions)
      .def_readonly("accuracy", &Simulatability::accuracy)
      .def_readonly("lower", &Simulatability::lower)
      .def_readonly("upper", &Simulatability::upper)
      .def_readonly("majority", &Simulatability::majority)
      .def_readonly("majority_by_head", &Simulatability::majority_by_head)
      .def_readonly("auroc", &Simulatability::auroc)
      .def_readonly("auroc_by_head", &Simulatability::auroc_by_head)
      .def("to_json", &Simulatability::to_json);
  m.def(
      "gate_simulatability",
      [](const std::vector<DecisionRecord>& records, int64_t shown_parts, int64_t resamples,
         uint64_t seed) {
        return gate_simulatability(records, shown_parts, {.resamples = resamples, .seed = seed});
      },
      py::arg("records"), py::arg("shown_parts") = 5, py::kw_only(), py::arg("resamples") = 2000,
      py::arg("seed") = 0, Unlocked(), R"pbdoc(
Recompute a gate's decisions from base + displayed parts alone, on held-out inputs.

The faithfulness of "why selected".

Args:
    records: DecisionRecord of held-out inputs under a policy with linear logits.
    shown_parts: of each head, largest magnitude first.
    resamples, seed: of the bootstrap over inputs.
Returns:
    Simulatability.
Raises:
    ValueError: for fewer than two records, and records without parts.
)pbdoc");
  py::class_<RandomisationCheck>(m, "RandomisationCheck", R"pbdoc(
How alike two gates explain the same inputs; see ``headkit.check_randomisation``.

Attributes:
    similarity, lower, upper: mean Spearman correlation of token parts; interval over inputs.
    limit, changes: whether the upper end lies below the limit, as it should.
)pbdoc")
      .def_readonly("inputs", &RandomisationCheck::inputs)
      .def_readonly("heads", &RandomisationCheck::heads)
      .def_readonly("similarity", &RandomisationCheck::similarity)
      .def_readonly("lower", &RandomisationCheck::lower)
      .def_readonly("upper", &RandomisationCheck::upper)
      .def_readonly("limit", &RandomisationCheck::limit)
      .def_readonly("changes", &RandomisationCheck::changes)
      .def("to_json", &RandomisationCheck::to_json);
  m.def(
      "check_randomisation",
      [](GatedModel& model, const DataSource& data, const GatePolicy& policy,
         const GatePolicy* other, double limit, int64_t resamples, uint64_t seed) {
        const std::vector<LinearLogits> gates = linear_logits(policy);
        return check_randomisation(
            model, data, gates,
            other == nullptr ? reinitialised(gates, seed) : linear_logits(*other), limit,
            {.resamples = resamples, .seed = seed});
      },
      py::arg("model"), py::arg("data"), py::arg("policy"), py::kw_only(), py::arg("other"),
      py::arg("limit"), py::arg("resamples"), py::arg("seed"), Unlocked(),
      "See headkit.check_randomisation.");
}

void register_stability(py::module_& m) {
  m.def(
      "rank_biased_overlap",
      [](const std::vector<double>& a, const std::vector<double>& b, double p) {
        return rank_biased_overlap(a, b, p);
      },
      py::arg("a"), py::arg("b"), py::arg("p") = 0.9, R"pbdoc(
How alike the tops of two rankings are: rank-biased overlap, extrapolated.

Larger values rank higher. With p = 0.9 the first ten ranks carry about 86 % of the weight.

Raises:
    ValueError: for rankings of different items, and values that are not finite.
Source:
    Webber, Moffat, Zobel 2010.
Example:
    >>> headkit.rank_biased_overlap([3.0, 2.0, 1.0], [30.0, 20.0, 10.0])
    1.0
)pbdoc");
  py::class_<SelectionStability>(m, "SelectionStability", R"pbdoc(
How alike the heads are that runs selected for one input, mean over inputs.

Attributes:
    nogueira, nogueira_lower, nogueira_upper: 1 = identical, about 0 = random; None where undefined.
    undefined_inputs: with all or no heads selected throughout.
    jaccard: mean over pairs; high by chance where most heads are selected.
    identical: share of inputs with the same selection in every run.
)pbdoc")
      .def_readonly("nogueira", &SelectionStability::nogueira)
      .def_readonly("nogueira_lower", &SelectionStability::nogueira_lower)
      .def_readonly("nogueira_upper", &SelectionStability::nogueira_upper)
      .def_readonly("undefined_inputs", &SelectionStability::undefined_inputs)
      .def_readonly("jaccard", &SelectionStability::jaccard)
      .def_readonly("identical", &SelectionStability::identical);
  py::class_<RankStability>(m, "RankStability", R"pbdoc(
How alike rankings of one input are between pairs of runs, mean over pairs and inputs.

Attributes:
    kendall, kendall_lower, kendall_upper: tau-b; None where undefined.
    rbo, rbo_lower, rbo_upper: rank-biased overlap, extrapolated, p = 0.9.
)pbdoc")
      .def_readonly("kendall", &RankStability::kendall)
      .def_readonly("kendall_lower", &RankStability::kendall_lower)
      .def_readonly("kendall_upper", &RankStability::kendall_upper)
      .def_readonly("rbo", &RankStability::rbo)
      .def_readonly("rbo_lower", &RankStability::rbo_lower)
      .def_readonly("rbo_upper", &RankStability::rbo_upper);
  py::class_<ExplanationStability>(m, "ExplanationStability", R"pbdoc(
Three claims, never one number; see ``headkit.explanation_stability``.

Attributes:
    axis, names, inputs: what differs between the runs, their names, and how many inputs.
    selection: SelectionStability, the same gates. explanation: RankStability, the same reasons.
    effect: RankStability, the same effects. None where a run lacks it.
)pbdoc")
      .def_readonly("axis", &ExplanationStability::axis)
      .def_readonly("names", &ExplanationStability::names)
      .def_readonly("inputs", &ExplanationStability::inputs)
      .def_readonly("selection", &ExplanationStability::selection)
      .def_readonly("explanation", &ExplanationStability::explanation)
      .def_readonly("effect", &ExplanationStability::effect)
      .def("to_json", &ExplanationStability::to_json);
  m.def(
      "explanation_stability",
      [](const std::vector<std::tuple<std::string, std::optional<at::Tensor>,
                                      std::optional<at::Tensor>, std::optional<at::Tensor>>>& runs,
         std::string axis, int64_t resamples, uint64_t seed) {
        std::vector<StabilityRun> all;
        for (const auto& [name, selection, explanation, effect] : runs) {
          all.push_back(
              {name, or_undefined(selection), or_undefined(explanation), or_undefined(effect)});
        }
        return explanation_stability(all, std::move(axis), {.resamples = resamples, .seed = seed});
      },
      py::arg("runs"), py::kw_only(), py::arg("axis"), py::arg("resamples"), py::arg("seed"),
      Unlocked(), "See headkit.explanation_stability.");
  py::class_<RankGap>(m, "RankGap", R"pbdoc(
A head that two metrics place far apart; rank 1 = the largest value.
)pbdoc")
      .def_property_readonly("layer", [](const RankGap& gap) { return gap.head.layer; })
      .def_property_readonly("head", [](const RankGap& gap) { return gap.head.head; })
      .def_readonly("first", &RankGap::first)
      .def_readonly("second", &RankGap::second)
      .def_readonly("first_rank", &RankGap::first_rank)
      .def_readonly("second_rank", &RankGap::second_rank);
  py::class_<MetricAgreement>(m, "MetricAgreement", R"pbdoc(
How far metrics agree, and about which heads they do not; see ``headkit.metric_agreement``.

Attributes:
    agreement: Agreement, Kendall's tau-b and others with intervals.
    gap: a quarter of the heads. gaps: RankGap of more than that, widest first.
)pbdoc")
      .def_readonly("agreement", &MetricAgreement::agreement)
      .def_readonly("gap", &MetricAgreement::gap)
      .def_readonly("gaps", &MetricAgreement::gaps)
      .def("to_json", &MetricAgreement::to_json);
  m.def(
      "metric_agreement",
      [](const std::vector<std::pair<std::string, at::Tensor>>& given, bool over_examples,
         int64_t resamples, uint64_t seed) {
        std::vector<ScoreSeries> metrics;
        for (const auto& [name, values] : given) metrics.push_back({name, values});
        return metric_agreement(
            metrics, {.runs = over_examples ? SeriesRuns::kExamples : SeriesRuns::kRepeats,
                      .resamples = resamples,
                      .seed = seed});
      },
      py::arg("metrics"), py::kw_only(), py::arg("over_examples"), py::arg("resamples"),
      py::arg("seed"), Unlocked(), "See headkit.metric_agreement.");
}

void register_corpus(py::module_& m) {
  py::class_<CorpusCorrelation>(m, "CorpusCorrelation", R"pbdoc(
Spearman correlation with a property of the inputs, and its interval; None where nothing varies.
)pbdoc")
      .def_readonly("property", &CorpusCorrelation::property)
      .def_readonly("spearman", &CorpusCorrelation::spearman)
      .def_readonly("lower", &CorpusCorrelation::lower)
      .def_readonly("upper", &CorpusCorrelation::upper);
  py::class_<CorpusHead>(m, "CorpusHead", R"pbdoc(
One head over a data set.

Attributes:
    layer, head: place in the original model.
    frequency, lower, upper: share of the inputs that run it, Wilson interval.
    state: "on", "off", "always_on", "pruned", "collapsed", or "mixed".
    mean_margin, margin_spread: over inputs, where there are margins.
    correlations: CorpusCorrelation of running with each property.
    by_class: frequency within each class.
)pbdoc")
      .def_property_readonly("layer", [](const CorpusHead& head) { return head.head.layer; })
      .def_property_readonly("head", [](const CorpusHead& head) { return head.head.head; })
      .def_readonly("frequency", &CorpusHead::frequency)
      .def_readonly("lower", &CorpusHead::lower)
      .def_readonly("upper", &CorpusHead::upper)
      .def_readonly("state", &CorpusHead::state)
      .def_readonly("mean_margin", &CorpusHead::mean_margin)
      .def_readonly("margin_spread", &CorpusHead::margin_spread)
      .def_readonly("correlations", &CorpusHead::correlations)
      .def_readonly("by_class", &CorpusHead::by_class);
  py::class_<CorpusReport>(m, "CorpusReport", R"pbdoc(
What a policy selects over a data set; see ``headkit.head_usage``.

Attributes:
    inputs, layout, policy: of what.
    heads: CorpusHead, by layer, then head.
    selected: number of heads -> inputs that run so many. mean_selected, selected_spread: of it.
    selected_correlations: CorpusCorrelation of that number with each property.
    classes, selected_by_class: inputs of each class, and the mean number of heads they run.
    same_for_all: Nogueira's index over inputs, 1 = a static selection; None where undefined.
    split_half: correlation of frequencies in two halves of the inputs; None where undefined.
)pbdoc")
      .def_readonly("inputs", &CorpusReport::inputs)
      .def_readonly("layout", &CorpusReport::layout)
      .def_readonly("policy", &CorpusReport::policy)
      .def_readonly("heads", &CorpusReport::heads)
      .def_readonly("selected", &CorpusReport::selected)
      .def_readonly("mean_selected", &CorpusReport::mean_selected)
      .def_readonly("selected_spread", &CorpusReport::selected_spread)
      .def_readonly("selected_correlations", &CorpusReport::selected_correlations)
      .def_readonly("classes", &CorpusReport::classes)
      .def_readonly("selected_by_class", &CorpusReport::selected_by_class)
      .def_readonly("same_for_all", &CorpusReport::same_for_all)
      .def_readonly("split_half", &CorpusReport::split_half)
      .def("to_json", &CorpusReport::to_json);
  py::class_<CorpusView>(m, "CorpusView", R"pbdoc(
Collects decision records of a data set in one pass.

Args:
    properties: names of what is known of every input beside its length.
Example:
    >>> headkit.CorpusView(["confidence"]).inputs
    0
)pbdoc")
      .def(py::init<std::vector<std::string>>(), py::arg("properties") = std::vector<std::string>())
      .def("add", &CorpusView::add, py::arg("record"), py::arg("values") = std::vector<double>(),
           py::arg("label") = "",
           "Add a record, a value of each property, and the class of the input.")
      .def_property_readonly("inputs", &CorpusView::inputs)
      .def("report", &CorpusView::report, py::arg("confidence") = 0.95, "CorpusReport.");
  m.def(
      "head_usage",
      [](GatedModel& model, const DataSource& data, const GatePolicy& policy, bool classes,
         std::vector<std::string> class_names, std::map<std::string, at::Tensor> properties,
         double confidence, Progress progress) {
        return head_usage(model, data, policy,
                          {.classes = classes,
                           .class_names = std::move(class_names),
                           .properties = std::move(properties),
                           .confidence = confidence,
                           .progress = interruptible(std::move(progress))});
      },
      py::arg("model"), py::arg("data"), py::arg("policy"), py::kw_only(), py::arg("classes"),
      py::arg("class_names"), py::arg("properties"), py::arg("confidence"), py::arg("progress"),
      Unlocked(), "See headkit.head_usage.");
}

}  // namespace

void register_trust(py::module_& m) {
  register_faithfulness(m);
  register_simulatability(m);
  register_stability(m);
  register_corpus(m);
}

}  // namespace headkit::bindings
