#include "headkit/scorers/head_scorer.h"

#include "headkit/core/error.h"
#include "headkit/scorers/ablation.h"
#include "headkit/scorers/fisher.h"
#include "headkit/scorers/gate_gradient.h"
#include "headkit/scorers/random_score.h"

namespace headkit {

const std::vector<ScorerInfo>& scorers() {
  static const std::vector<ScorerInfo> all{
      {.name = "gate_gradient",
       .definition = "mean over examples of |d loss / d gate| at the dense model",
       .source = "Michel, Levy, Neubig 2019; Molchanov et al. 2017",
       .cost = "1 forward + 1 backward",
       .needs = "labels, or whatever the objective reads; refuses KL and cosine to the dense model",
       .make = [] { return std::make_unique<GateGradientScorer>(); }},
      {.name = "fisher",
       .definition = "mean over examples of (d loss / d gate)^2 at the dense model",
       .source = "Kwon et al. 2022",
       .cost = "1 forward + 1 backward",
       .needs = "labels, or whatever the objective reads; refuses KL and cosine to the dense model",
       .make = [] { return std::make_unique<FisherScorer>(); }},
      {.name = "ablation",
       .definition = "mean loss with the head closed - mean loss of the dense model",
       .source = "Michel, Levy, Neubig 2019",
       .cost = "about (heads + 1) / 2 forwards",
       .needs = "labels, or nothing with KL or cosine to the dense model",
       .make = [] { return std::make_unique<AblationScorer>(); }},
      {.name = "random",
       .definition = "uniform numbers from a seed",
       .source = "baseline",
       .cost = "none",
       .needs = "nothing",
       .make = [] { return std::make_unique<RandomScorer>(); }},
  };
  return all;
}

std::unique_ptr<HeadScorer> make_scorer(const std::string& name) {
  std::string known;
  for (const ScorerInfo& each : scorers()) {
    if (each.name == name) return each.make();
    known += (known.empty() ? "" : ", ") + each.name;
  }
  throw std::invalid_argument(error_message("score", "a metric among " + known, "'", name, "'"));
}

}  // namespace headkit
