#include "headkit/scorers/head_scorer.h"

#include "core/json.h"
#include "core/method_settings.h"
#include "headkit/core/error.h"
#include "headkit/models/data_hash.h"
#include "headkit/scorers/ablation.h"
#include "headkit/scorers/activation.h"
#include "headkit/scorers/all_but_one.h"
#include "headkit/scorers/attention_entropy.h"
#include "headkit/scorers/confidence.h"
#include "headkit/scorers/fisher.h"
#include "headkit/scorers/flap.h"
#include "headkit/scorers/gate_gradient.h"
#include "headkit/scorers/greedy_gnorm.h"
#include "headkit/scorers/hies.h"
#include "headkit/scorers/kl_curvature.h"
#include "headkit/scorers/random_score.h"
#include "headkit/scorers/shapley.h"
#include "headkit/scorers/weight_norm.h"

namespace headkit {
namespace {

constexpr char kScore[] = "score";
constexpr char kTaskNeeds[] =
    "labels, or whatever the objective reads; refuses KL and cosine to the dense model";
constexpr char kLossNeeds[] = "labels, or nothing with KL or cosine to the dense model";

void read(MethodSettings& settings, AblationOptions& options) {
  settings.read("replacement", options.replacement,
                "zero, mean (the head's mean output) or resample (that of another example)");
}

void read(MethodSettings& settings, ActivationOptions& options) {
  settings.read("statistic", options.statistic,
                "energy (square of the norm after W_O), norm (after W_O) or raw_norm (before it)");
}

void read(MethodSettings& settings, FlapOptions& options) {
  settings.read("standardize", options.standardize, "z-scores over the channels of each layer");
  settings.read("square", options.square, "square before standardising, as the released code");
}

void read(MethodSettings& settings, EntropyOptions& options) {
  settings.read("sign", options.sign,
                "high or low entropy is important, or calibrated against ablation");
  settings.read("first_token", options.first_token,
                "keep or drop the first token as a key, or calibrated");
  settings.read("calibration_share", options.calibration_share,
                "share of the examples, the first ones, that only the calibration sees");
}

void read(MethodSettings& settings, ConfidenceOptions& options) {
  settings.read("exclude_end", options.exclude_end,
                "the last token of an example counts neither as query nor as key");
}

void read(MethodSettings& settings, ShapleyOptions& options) {
  settings.read("permutations", options.permutations, "the most that are drawn, in pairs");
  settings.read("tolerance", options.tolerance,
                "a permutation ends where the loss is this close to that without heads; 0 = never");
  settings.read("rank", options.rank,
                "stop when the intervals separate this many heads from the rest; 0 = never");
  settings.read("exact", options.exact, "all subsets where that costs no more than sampling");
}

void read(MethodSettings& settings, WeightNormOptions& options) {
  settings.read("kind", options.kind, "output, ov, qk or all");
}

void read(MethodSettings& settings, GreedyGnormOptions& options) {
  settings.read("recompute", options.recompute, "after every removal, as published");
}

void read(MethodSettings& settings, HiesOptions& options) {
  settings.read("alpha", options.alpha, "weight of the gate gradient, 0 to 1");
}

void read(MethodSettings& settings, KlCurvatureOptions& options) {
  settings.read("draws", options.draws,
                "labels drawn from the model for each example or token; 0 = every class");
}

// A scorer whose settings tell the data_hash of what it saw.
class HashingScorer final : public HeadScorer {
 public:
  explicit HashingScorer(std::unique_ptr<HeadScorer> scorer) : scorer_(std::move(scorer)) {}
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override {
    const HashedData seen(data);
    HeadScores scores = scorer_->score(model, seen, objective, options);
    if (seen.hash().empty()) return scores;
    Json settings = scores.settings.empty() ? Json::object() : parse_json(kScore, scores.settings);
    settings["data_hash"] = seen.hash();
    scores.settings = settings.dump();
    return scores;
  }

 private:
  std::unique_ptr<HeadScorer> scorer_;
};

template <typename Scorer>
ScorerInfo plain(ScorerInfo info) {
  info.make = [name = info.name](const std::string& given) {
    MethodSettings(name, given, kScore).check_all_read();
    return std::make_unique<Scorer>();
  };
  return info;
}

template <typename Scorer, typename Options>
ScorerInfo with_settings(ScorerInfo info) {
  MethodSettings none(info.name, "{}", kScore);
  Options standard;
  read(none, standard);
  info.settings = none.known();
  info.make = [name = info.name](const std::string& given) {
    Options options;
    MethodSettings settings(name, given, kScore);
    read(settings, options);
    settings.check_all_read();
    return std::make_unique<Scorer>(options);
  };
  return info;
}

}  // namespace

const std::vector<ScorerInfo>& scorers() {
  static const std::vector<ScorerInfo> all{
      plain<GateGradientScorer>(
          {.name = "gate_gradient",
           .definition = "mean over examples of |d loss / d gate| at the dense model",
           .source = "Michel, Levy, Neubig 2019; Molchanov et al. 2017",
           .cost = "1 forward + 1 backward",
           .needs = kTaskNeeds,
           .make = nullptr,
           .ranking_normalization = "layer_l2"}),
      plain<FisherScorer>({.name = "fisher",
                           .definition = "mean over examples of (d loss / d gate)^2 at the dense "
                                         "model",
                           .source = "Kwon et al. 2022",
                           .cost = "1 forward + 1 backward",
                           .needs = kTaskNeeds,
                           .make = nullptr}),
      with_settings<AblationScorer, AblationOptions>(
          {.name = "ablation",
           .definition = "mean loss with the head closed - mean loss of the dense model",
           .source = "Michel, Levy, Neubig 2019",
           .cost = "about (heads + 1) / 2 forwards",
           .needs = kLossNeeds,
           .make = nullptr}),
      plain<AllButOneScorer>(
          {.name = "all_but_one",
           .definition = "mean loss of the dense model - mean loss with all other heads of the "
                         "layer closed",
           .source = "Michel, Levy, Neubig 2019",
           .cost = "about (heads + 1) / 2 forwards with fewer heads",
           .needs = kLossNeeds,
           .make = nullptr}),
      with_settings<ShapleyScorer, ShapleyOptions>(
          {.name = "shapley",
           .definition = "mean over orders of closing heads of the rise of the mean loss when the "
                         "head goes",
           .source = "Held, Yang 2023; Ghorbani, Zou 2019",
           .cost = "permutations x heads forwards with half of the heads",
           .needs = kLossNeeds,
           .make = nullptr}),
      with_settings<KlCurvatureScorer, KlCurvatureOptions>(
          {.name = "kl_curvature",
           .definition = "second derivative of KL(dense || gated) by the gate at the dense model",
           .source = "Fisher information with labels from the model; Martens 2020",
           .cost = "1 forward + a backward for each class, or each draw",
           .needs = "logits; no labels",
           .make = nullptr}),
      with_settings<ActivationScorer, ActivationOptions>(
          {.name = "activation",
           .definition = "mean over tokens of |head output through W_O|^2",
           .source = "magnitude of what a head writes; Kobayashi et al. 2020 for the norm",
           .cost = "1 forward",
           .needs = "nothing",
           .make = nullptr}),
      with_settings<FlapScorer, FlapOptions>(
          {.name = "flap",
           .definition = "variance over tokens of each channel of the head output x |its column of "
                         "W_O|^2, standardised over the layer, mean over the head",
           .source = "An et al. 2024",
           .cost = "1 forward",
           .needs = "nothing",
           .make = nullptr}),
      with_settings<AttentionEntropyScorer, EntropyOptions>(
          {.name = "attention_entropy",
           .definition = "mean over queries of entropy / ln(keys it may see), with the sign of its "
                         "rank correlation with ablation",
           .source = "sign and normalisation as HIES 2025 (arXiv 2510.13832) shows need for",
           .cost = "2 forwards; ablation on a quarter of the data unless the sign is given",
           .needs = "what the objective reads, for the calibration",
           .make = nullptr}),
      with_settings<ConfidenceScorer, ConfidenceOptions>(
          {.name = "confidence",
           .definition = "mean over queries of the largest attention probability",
           .source = "Voita et al. 2019",
           .cost = "2 forwards",
           .needs = "nothing",
           .make = nullptr}),
      with_settings<WeightNormScorer, WeightNormOptions>(
          {.name = "weight_norm",
           .definition = "Frobenius norm of weights of the head",
           .source = "magnitude pruning; weak, see Ma, Fang, Wang 2023",
           .cost = "none",
           .needs = "nothing",
           .make = nullptr}),
      with_settings<GreedyGnormScorer, GreedyGnormOptions>(
          {.name = "greedy_gnorm",
           .definition = "place in the order of removal by |dL/dW_Q| |dL/dW_K| |dL/dW_V|, computed "
                         "anew after every removal",
           .source = "Greedy-Gnorm 2026 (arXiv 2602.04491)",
           .cost = "heads x (1 forward + 1 backward)",
           .needs = kTaskNeeds,
           .make = nullptr}),
      with_settings<HiesScorer, HiesOptions>(
          {.name = "hies",
           .definition = "alpha x gate gradient + (1 - alpha) x (1 - attention entropy), each "
                         "scaled to 0 .. 1",
           .source = "HIES 2025 (arXiv 2510.13832)",
           .cost = "3 forwards + 1 backward",
           .needs = kTaskNeeds,
           .make = nullptr}),
      plain<RandomScorer>({.name = "random",
                           .definition = "uniform numbers from a seed",
                           .source = "baseline",
                           .cost = "none",
                           .needs = "nothing",
                           .make = nullptr}),
  };
  return all;
}

const ScorerInfo& scorer_info(const std::string& name) {
  std::string known;
  for (const ScorerInfo& each : scorers()) {
    if (each.name == name) return each;
    known += (known.empty() ? "" : ", ") + each.name;
  }
  throw std::invalid_argument(error_message(kScore, "a metric among " + known, "'", name, "'"));
}

std::unique_ptr<HeadScorer> make_scorer(const std::string& name, const std::string& settings) {
  return std::make_unique<HashingScorer>(scorer_info(name).make(settings));
}

}  // namespace headkit
