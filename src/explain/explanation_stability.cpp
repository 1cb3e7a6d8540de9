#include "headkit/explain/explanation_stability.h"

#include <ATen/ATen.h>

#include <cmath>
#include <functional>
#include <span>

#include "core/json_members.h"
#include "headkit/core/error.h"
#include "headkit/scorers/agreement.h"
#include "headkit/scorers/rank_biased_overlap.h"
#include "headkit/scorers/stability.h"

namespace headkit {
namespace {

constexpr auto kOperation = "explanation_stability";

// One field of all runs, double [runs, N, ...]; undefined where a run lacks it.
at::Tensor all_of(const std::vector<StabilityRun>& runs, at::Tensor StabilityRun::*field,
                  int64_t rank, const char* what) {
  std::vector<at::Tensor> all;
  for (const StabilityRun& run : runs) {
    const at::Tensor& given = run.*field;
    if (!given.defined()) return {};
    HEADKIT_CHECK(
        given.dim() == rank && given.numel() > 0 && given.sizes() == (runs.front().*field).sizes(),
        kOperation, c10::str("runs with ", what, " of one shape and rank ", rank), given.sizes(),
        " in ", run.name);
    all.push_back(given.detach().to(at::kCPU, at::kDouble));
    HEADKIT_CHECK(all.back().isfinite().all().item<bool>(), kOperation, "finite values",
                  "NaN or infinity in the ", what, " of ", run.name);
  }
  return at::stack(all);
}

BootstrapInterval interval_of(const std::vector<double>& values, const BootstrapOptions& options) {
  return bootstrap_mean(at::tensor(values, at::kDouble), BootstrapUnit::kExamples, options);
}

double mean_jaccard(const at::Tensor& open) {
  double sum = 0;
  int64_t pairs = 0;
  for (int64_t i = 0; i < open.size(0); ++i) {
    for (int64_t j = 0; j < i; ++j, ++pairs) {
      const double both = open[i].logical_and(open[j]).sum().item<double>();
      const double any = open[i].logical_or(open[j]).sum().item<double>();
      sum += any == 0 ? 1 : both / any;
    }
  }
  return sum / static_cast<double>(pairs);
}

SelectionStability selection_of(const at::Tensor& gates, const BootstrapOptions& options) {
  const at::Tensor open = gates != 0;
  SelectionStability result;
  std::vector<double> index;
  for (int64_t b = 0; b < open.size(1); ++b) {
    const at::Tensor own = open.select(1, b);
    result.jaccard += mean_jaccard(own);
    result.identical += own.eq(own[0]).all().item<bool>();
    if (!own.any().item<bool>() || own.all().item<bool>()) {
      ++result.undefined_inputs;
      continue;
    }
    std::vector<HeadMask> masks;
    for (int64_t run = 0; run < own.size(0); ++run) masks.emplace_back(own[run]);
    index.push_back(stability(masks).nogueira);
  }
  const auto inputs = static_cast<double>(open.size(1));
  result.jaccard /= inputs;
  result.identical /= inputs;
  if (!index.empty()) {
    const BootstrapInterval interval = interval_of(index, options);
    result.nogueira = interval.mean;
    result.nogueira_lower = interval.lower;
    result.nogueira_upper = interval.upper;
  }
  return result;
}

RankStability ranks_of(const at::Tensor& values, const BootstrapOptions& options) {
  const at::Tensor rows = values.flatten(2).contiguous();
  const int64_t runs = rows.size(0), inputs = rows.size(1), items = rows.size(2);
  const auto row = [&](int64_t run, int64_t b) {
    return std::span<const double>(rows.const_data_ptr<double>() + (run * inputs + b) * items,
                                   static_cast<size_t>(items));
  };
  RankStability result;
  std::vector<double> kendall, rbo;
  for (int64_t b = 0; b < inputs; ++b) {
    double tau = 0, overlap = 0, pairs = 0;
    for (int64_t i = 0; i < runs; ++i) {
      for (int64_t j = 0; j < i; ++j, ++pairs) {
        tau += kendall_tau(row(i, b), row(j, b)).tau_b;
        overlap += rank_biased_overlap(row(i, b), row(j, b));
      }
    }
    rbo.push_back(overlap / pairs);
    if (std::isnan(tau)) {
      ++result.undefined_inputs;
    } else {
      kendall.push_back(tau / pairs);
    }
  }
  const BootstrapInterval interval = interval_of(rbo, options);
  result.rbo = interval.mean;
  result.rbo_lower = interval.lower;
  result.rbo_upper = interval.upper;
  if (!kendall.empty()) {
    const BootstrapInterval tau = interval_of(kendall, options);
    result.kendall = tau.mean;
    result.kendall_lower = tau.lower;
    result.kendall_upper = tau.upper;
  }
  return result;
}

Json ranks_json(const std::optional<RankStability>& ranks) {
  if (!ranks) return nullptr;
  return {{"kendall", nullable(ranks->kendall)},
          {"kendall_interval", nullable_interval(ranks->kendall_lower, ranks->kendall_upper)},
          {"rbo", ranks->rbo},
          {"rbo_interval", {ranks->rbo_lower, ranks->rbo_upper}},
          {"undefined_inputs", ranks->undefined_inputs}};
}

}  // namespace

ExplanationStability explanation_stability(const std::vector<StabilityRun>& runs, std::string axis,
                                           const BootstrapOptions& options) {
  HEADKIT_CHECK(runs.size() >= 2, kOperation, "at least two runs", runs.size());
  ExplanationStability result;
  result.axis = std::move(axis);
  for (const StabilityRun& run : runs) result.names.push_back(run.name);
  const at::Tensor selection = all_of(runs, &StabilityRun::selection, 3, "gates [N, L, H]");
  const at::Tensor reasons = all_of(runs, &StabilityRun::explanation, 2, "reasons [N, R]");
  const at::Tensor effects = all_of(runs, &StabilityRun::effect, 3, "effects [N, L, H]");
  for (const at::Tensor* field : {&selection, &reasons, &effects}) {
    if (!field->defined()) continue;
    HEADKIT_CHECK(result.inputs == 0 || result.inputs == field->size(1), kOperation,
                  "fields of the same inputs", result.inputs, " and ", field->size(1));
    result.inputs = field->size(1);
  }
  HEADKIT_CHECK(result.inputs > 0, kOperation, "a field that every run has", "none");
  if (selection.defined()) result.selection = selection_of(selection, options);
  if (reasons.defined()) result.explanation = ranks_of(reasons.abs(), options);
  if (effects.defined()) result.effect = ranks_of(effects, options);
  return result;
}

std::string ExplanationStability::to_json() const {
  Json json{{"axis", axis},
            {"runs", names},
            {"inputs", inputs},
            {"interval_over", "inputs"},
            {"selection", nullptr},
            {"explanation", ranks_json(explanation)},
            {"effect", ranks_json(effect)}};
  if (selection) {
    json["selection"] = {
        {"nogueira", nullable(selection->nogueira)},
        {"interval", nullable_interval(selection->nogueira_lower, selection->nogueira_upper)},
        {"undefined_inputs", selection->undefined_inputs},
        {"jaccard", selection->jaccard},
        {"identical", selection->identical}};
  }
  return json.dump();
}

}  // namespace headkit
