#include <headkit/core/error.h>
#include <headkit/scorers/agreement.h>
#include <headkit/scorers/paired_tests.h>
#include <headkit/scorers/stability.h>

#include <iomanip>
#include <sstream>

#include "optional_tensor.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

// Spearman of every pair, or what fits on a line for stability.
std::string text_of(const Agreement& agreement) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(2) << "Agreement(Spearman, " << agreement.runs
       << (agreement.over_examples ? " examples"
           : agreement.runs == 1   ? " run"
                                   : " runs")
       << ")";
  size_t width = 0;
  for (const std::string& name : agreement.names) width = std::max(width, name.size());
  const auto values = agreement.spearman.values.accessor<double, 2>();
  for (size_t i = 0; i < agreement.names.size(); ++i) {
    text << "\n"
         << std::left << std::setw(static_cast<int>(width)) << agreement.names[i] << std::right;
    for (size_t j = 0; j < agreement.names.size(); ++j) {
      text << std::setw(6) << values[static_cast<int64_t>(i)][static_cast<int64_t>(j)];
    }
  }
  return text.str();
}

std::string text_of(const Stability& stability) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(2) << "Stability(" << stability.nogueira << " in ["
       << stability.lower << ", " << stability.upper << "], " << stability.masks << " masks of "
       << stability.mean_kept << " heads)";
  return text.str();
}

BootstrapUnit unit_of(const std::string& name) {
  if (name == "examples") return BootstrapUnit::kExamples;
  if (name == "seeds") return BootstrapUnit::kSeeds;
  if (name == "both") return BootstrapUnit::kBoth;
  throw std::invalid_argument(
      error_message("bootstrap", "over examples, seeds or both", "'", name, "'"));
}

void register_ranks(py::module_& m) {
  using Doubles = std::vector<double>;
  m.def(
      "pearson", [](const Doubles& a, const Doubles& b) { return pearson(a, b); }, py::arg("a"),
      py::arg("b"), "Pearson correlation of two lists; NaN where one is constant.");
  m.def(
      "spearman", [](const Doubles& a, const Doubles& b) { return spearman(a, b); }, py::arg("a"),
      py::arg("b"), R"pbdoc(
Correlation of average ranks; NaN where one side is constant.

Example:
    >>> headkit.spearman([0.1, 0.2, 0.9], [3, 7, 8])
    1.0
)pbdoc");
  m.def(
      "kendall_tau", [](const Doubles& a, const Doubles& b) { return kendall_tau(a, b).tau_b; },
      py::arg("a"), py::arg("b"), "Kendall's tau-b; NaN where one side is constant.");

  py::class_<TopKOverlap>(m, "TopKOverlap", R"pbdoc(
How far the k largest of two rankings are the same.

Attributes:
    top_a, top_b: places, ascending.
    overlap, chance: |A and B| / k, and what two random sets give.
    kuncheva: overlap corrected for chance; NaN at k = N.
    jaccard: |A and B| / |A or B|; misleading for k near N.
    p_value: of at least this overlap by chance.
)pbdoc")
      .def_readonly("top_a", &TopKOverlap::top_a)
      .def_readonly("top_b", &TopKOverlap::top_b)
      .def_readonly("overlap", &TopKOverlap::overlap)
      .def_readonly("chance", &TopKOverlap::chance)
      .def_readonly("kuncheva", &TopKOverlap::kuncheva)
      .def_readonly("jaccard", &TopKOverlap::jaccard)
      .def_readonly("p_value", &TopKOverlap::p_value);
  m.def(
      "top_k_overlap",
      [](const Doubles& a, const Doubles& b, int64_t k) { return top_k_overlap(a, b, k); },
      py::arg("a"), py::arg("b"), py::arg("k"), R"pbdoc(
Compare the k largest of two lists; ties go to the lower place.

Raises:
    ValueError: for lists of different lengths and a k outside 1 to their length.
Source:
    Kuncheva 2007.
Example:
    >>> headkit.top_k_overlap([3, 2, 1, 0], [3, 0, 2, 1], 2).overlap
    0.5
)pbdoc");
}

void register_pairs(py::module_& m) {
  py::class_<PairMatrix>(m, "PairMatrix",
                         "A statistic of every pair, ``values``, ``lower`` and ``upper`` [n, n]; "
                         "the bounds are None without interval.")
      .def_readonly("values", &PairMatrix::values)
      .def_property_readonly("lower", [](const PairMatrix& p) { return or_none(p.lower); })
      .def_property_readonly("upper", [](const PairMatrix& p) { return or_none(p.upper); });
  py::class_<Agreement>(m, "Agreement", R"pbdoc(
How far ways to score heads agree; see ``headkit.agreement``.

Attributes:
    names: of the n ways.
    pearson, spearman, kendall, overlap: PairMatrix; overlap is that of the top k.
    top_k, chance: k, and the overlap of two random sets.
    runs: measurements of each way. between_runs: Spearman between runs of one way, [n].
    over_examples: whether intervals are over examples; if not, over runs.
    rank_spread: where they disagree, [layers, heads]: standard deviation of a head's rank.
)pbdoc")
      .def_readonly("names", &Agreement::names)
      .def_readonly("runs", &Agreement::runs)
      .def_readonly("top_k", &Agreement::top_k)
      .def_readonly("confidence", &Agreement::confidence)
      .def_readonly("over_examples", &Agreement::over_examples)
      .def_readonly("pearson", &Agreement::pearson)
      .def_readonly("spearman", &Agreement::spearman)
      .def_readonly("kendall", &Agreement::kendall)
      .def_readonly("overlap", &Agreement::overlap)
      .def_readonly("chance", &Agreement::chance)
      .def_readonly("between_runs", &Agreement::between_runs)
      .def_readonly("rank_spread", &Agreement::rank_spread)
      .def("to_json", &Agreement::to_json)
      .def("__repr__", [](const Agreement& a) { return text_of(a); });
  m.def(
      "score_agreement",
      [](const std::vector<std::pair<std::string, at::Tensor>>& series, bool over_examples,
         int64_t top_k, double confidence, int64_t resamples, uint64_t seed) {
        std::vector<ScoreSeries> all;
        for (const auto& [name, values] : series) all.push_back({name, values});
        return agreement(all, {.runs = over_examples ? SeriesRuns::kExamples : SeriesRuns::kRepeats,
                               .top_k = top_k,
                               .confidence = confidence,
                               .resamples = resamples,
                               .seed = seed});
      },
      py::arg("series"), py::kw_only(), py::arg("over_examples"), py::arg("top_k"),
      py::arg("confidence"), py::arg("resamples"), py::arg("seed"), Unlocked(),
      "See headkit.agreement.");

  py::class_<Stability>(m, "Stability", R"pbdoc(
How alike the masks of several runs are; see ``headkit.stability``.

Attributes:
    masks, mean_kept: how many, and the heads that each keeps on average.
    nogueira, variance, lower, upper: the index, and its asymptotic interval.
    fleiss_kappa: the same number by another route. mean_kuncheva: over pairs, of masks of one size.
    frequency: share of the masks that keep a head, [layers, heads].
)pbdoc")
      .def_readonly("masks", &Stability::masks)
      .def_readonly("mean_kept", &Stability::mean_kept)
      .def_readonly("nogueira", &Stability::nogueira)
      .def_readonly("variance", &Stability::variance)
      .def_readonly("lower", &Stability::lower)
      .def_readonly("upper", &Stability::upper)
      .def_readonly("confidence", &Stability::confidence)
      .def_readonly("fleiss_kappa", &Stability::fleiss_kappa)
      .def_readonly("mean_kuncheva", &Stability::mean_kuncheva)
      .def_readonly("frequency", &Stability::frequency)
      .def("to_json", &Stability::to_json)
      .def("__repr__", [](const Stability& s) { return text_of(s); });
  m.def("mask_stability", &stability, py::arg("masks"), py::arg("confidence"), Unlocked(),
        "See headkit.stability.");
}

void register_tests(py::module_& m) {
  py::class_<BootstrapInterval>(m, "BootstrapInterval", R"pbdoc(
A mean with its percentile interval.

Attributes:
    mean, lower, upper, standard_error: of the statistic.
    p_value: two-sided, for a mean of 0.
)pbdoc")
      .def_readonly("mean", &BootstrapInterval::mean)
      .def_readonly("lower", &BootstrapInterval::lower)
      .def_readonly("upper", &BootstrapInterval::upper)
      .def_readonly("standard_error", &BootstrapInterval::standard_error)
      .def_readonly("p_value", &BootstrapInterval::p_value)
      .def("__repr__", [](const BootstrapInterval& i) {
        return c10::str("BootstrapInterval(", i.mean, " in [", i.lower, ", ", i.upper, "])");
      });
  m.def(
      "bootstrap_mean",
      [](const at::Tensor& values, const std::string& over, int64_t resamples, double confidence,
         uint64_t seed) {
        return bootstrap_mean(values, unit_of(over),
                              {.resamples = resamples, .confidence = confidence, .seed = seed});
      },
      py::arg("values"), py::kw_only(), py::arg("over") = "examples", py::arg("resamples") = 10000,
      py::arg("confidence") = 0.95, py::arg("seed") = 0, Unlocked(), R"pbdoc(
Interval of a mean by resampling.

Args:
    values: shape [examples] or [seeds, examples].
    over: what is drawn anew: ``"examples"`` (the same for all seeds), ``"seeds"`` (runs that were
        trained apart), or ``"both"`` (each on its own: runs are judged on the same examples).
    resamples, confidence, seed: of the bootstrap.
Raises:
    ValueError: for other shapes, values that are not finite, and options out of range.
Source:
    Efron, Tibshirani 1993; for both, Owen 2007.
Example:
    >>> headkit.bootstrap_mean(torch.tensor([1.0, 1.0, 1.0])).upper
    1.0
)pbdoc");
  m.def(
      "paired_bootstrap",
      [](const at::Tensor& a, const at::Tensor& b, const std::string& over, int64_t resamples,
         double confidence, uint64_t seed) {
        return paired_bootstrap(a, b, unit_of(over),
                                {.resamples = resamples, .confidence = confidence, .seed = seed});
      },
      py::arg("a"), py::arg("b"), py::kw_only(), py::arg("over") = "examples",
      py::arg("resamples") = 10000, py::arg("confidence") = 0.95, py::arg("seed") = 0, Unlocked(),
      "Interval of mean(b - a) on the same examples; arguments as for ``bootstrap_mean``.");

  py::class_<McNemarTest>(m, "McNemarTest", R"pbdoc(
Two classifiers on the same examples.

Attributes:
    examples, only_a, only_b: how many, and how many only one of the two has right.
    accuracy_difference, standard_error: of b minus a.
    exact_p, mid_p: two-sided. chi_square, chi_square_corrected: one degree of freedom.
)pbdoc")
      .def_readonly("examples", &McNemarTest::examples)
      .def_readonly("only_a", &McNemarTest::only_a)
      .def_readonly("only_b", &McNemarTest::only_b)
      .def_readonly("accuracy_difference", &McNemarTest::accuracy_difference)
      .def_readonly("exact_p", &McNemarTest::exact_p)
      .def_readonly("mid_p", &McNemarTest::mid_p)
      .def_readonly("chi_square", &McNemarTest::chi_square)
      .def_readonly("chi_square_corrected", &McNemarTest::chi_square_corrected)
      .def_readonly("standard_error", &McNemarTest::standard_error);
  m.def(
      "mcnemar", [](const at::Tensor& a, const at::Tensor& b) { return mcnemar(a, b); },
      py::arg("a"), py::arg("b"), Unlocked(), R"pbdoc(
Exact test of two classifiers on the same examples.

Args:
    a, b: bool, shape [examples], true where the classifier is right.
Raises:
    ValueError: for other dtypes, shapes that differ, or no example.
Source:
    McNemar 1947.
Example:
    >>> a, b = torch.tensor([True, True, False]), torch.tensor([True, False, False])
    >>> headkit.mcnemar(a, b).only_a
    1
)pbdoc");
  m.def("holm", &holm, py::arg("p_values"), R"pbdoc(
P values adjusted for their number.

Source:
    Holm 1979.
Example:
    >>> headkit.holm([0.25, 0.125])
    [0.25, 0.25]
)pbdoc");
  m.def("binomial_half_width", &binomial_half_width, py::arg("accuracy"), py::arg("examples"),
        "Half the 95 % interval of an accuracy: 1.96 sqrt(p (1 - p) / n).");
  m.def("two_proportion_z", &two_proportion_z, py::arg("share_a"), py::arg("n_a"),
        py::arg("share_b"), py::arg("n_b"),
        "Unpaired z of two shares, pooled variance; above 0 where a is larger.");
}

}  // namespace

void register_agreement(py::module_& m) {
  register_ranks(m);
  register_pairs(m);
  register_tests(m);
}

}  // namespace headkit::bindings
