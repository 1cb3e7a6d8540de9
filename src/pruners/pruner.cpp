#include "headkit/pruners/pruner.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <exception>

#include "core/json.h"
#include "headkit/core/error.h"
#include "headkit/models/data_hash.h"
#include "headkit/models/encoder.h"
#include "headkit/pruners/backward_elimination.h"
#include "headkit/pruners/bottom_up.h"
#include "headkit/pruners/cofi.h"
#include "headkit/pruners/fixed_target.h"
#include "headkit/pruners/flap_joint.h"
#include "headkit/pruners/iterative.h"
#include "headkit/pruners/kwon.h"
#include "headkit/pruners/obs.h"
#include "headkit/pruners/prune_by_scores.h"
#include "headkit/pruners/removal.h"
#include "headkit/pruners/subset.h"
#include "headkit/pruners/voita.h"
#include "pruners/learned_training.h"
#include "pruners/score_settings.h"

namespace headkit {
namespace {

std::vector<PrunerInfo> one_shot_pruners() {
  std::vector<PrunerInfo> all;
  for (const ScorerInfo& scorer : scorers()) {
    all.push_back(
        {.name = scorer.name,
         .definition = "Scores once, keeps the top share of heads. Score: " + scorer.definition,
         .source = "Michel, Levy, Neubig 2019 (one shot); score: " + scorer.source,
         .cost = scorer.cost,
         .needs = scorer.needs,
         .prune =
             [name = scorer.name](GatedModel& model, const DataSource& data,
                                  const Objective& objective, const PruneOptions& options) {
               MethodSettings settings(name, options.settings);
               ScoreOptions score = options.score;
               if (score.normalization == ScoreOptions().normalization) {
                 score.normalization = scorer_info(name).ranking_normalization;
               }
               read_score_settings(settings, score);
               settings.read("confidence", score.confidence, "level of the interval");
               settings.read("bootstrap", score.bootstrap, "resamples for the interval");
               const auto scorer = make_scorer(name, settings.unread());
               return prune_by_scores(model, data, scorer->score(model, data, objective, score),
                                      options);
             },
         .settings = scorer.settings});
  }
  return all;
}

void read(MethodSettings& settings, IterativeOptions& options) {
  settings.read("metric", options.metric, "a name in headkit.scorers()");
  settings.read("step", options.step, "heads that go between two scorings; 1 = exact");
  read_score_settings(settings, options.score);
}

void read(MethodSettings& settings, BackwardEliminationOptions& options) {
  settings.read("step", options.step, "heads that go between two evaluations");
  settings.read("shortlist", options.shortlist,
                "heads tried in a step, those that did least harm before; 0 = all");
}

void read(MethodSettings& settings, KwonOptions& options) {
  settings.read("neurons", options.neurons,
                "also prune neurons, where the model has gates of them");
  settings.read("tokens", options.tokens, "length that costs are counted at; 0 = mean of the data");
  settings.read("head_latency", options.head_latency,
                "latencies of an attention block with 1, 2, .. heads, instead of MACs");
  settings.read("neuron_latency", options.neuron_latency,
                "latencies of a feed-forward block with evenly many neurons in each entry");
  settings.read("other_latency", options.other_latency, "latency beside these blocks");
  settings.read("rearrange", options.rearrange, "swap units of a layer by the block Fisher");
  settings.read("tune", options.tune, "scale what stays by ridge regression");
  settings.read("ridge", options.ridge, "of the tuning, in units of the mean squared output");
  settings.read("largest_scale", options.largest_scale, "layers that exceed it keep 1");
  settings.read("tune_examples", options.tune_examples, "examples that tuning looks at; 0 = all");
}

void read(MethodSettings& settings, FlapJointOptions& options) {
  settings.read("neurons", options.neurons,
                "also prune neurons, where the model has gates of them");
  settings.read("cost", options.cost, "what a unit costs: parameters, as published, or macs");
  settings.read("tokens", options.tokens, "length that MACs are counted at; 0 = mean of the data");
  settings.read("square", options.square,
                "square the channel scores of heads first, as the released code");
  settings.read(
      "means", options.means,
      "replace what goes: dense (means of the dense model, as published), pruned or none");
}

void read(MethodSettings& settings, BottomUpOptions& options) {
  settings.read("neurons", options.neurons,
                "also prune neurons, where the model has gates of them");
  settings.read("tokens", options.tokens, "length that costs are counted at; 0 = mean of the data");
  settings.read("prediction", options.prediction, "weight of half the Fisher information");
  settings.read("representation", options.representation, "weight of the mean squared output");
  settings.read("ridge", options.ridge, "of the re-fit, in units of the mean squared input");
  settings.read("refit_examples", options.refit_examples,
                "examples that the re-fit looks at; 0 = all");
}

void read(MethodSettings& settings, ObsOptions& options) {
  settings.read("neurons", options.neurons,
                "also prune neurons, where the model has gates of them");
  settings.read("tokens", options.tokens, "length that costs are counted at; 0 = mean of the data");
  settings.read("damping", options.damping, "of the inverse, in units of the mean squared input");
  settings.read("ridge", options.ridge, "of the re-fit, in the same units");
  settings.read("examples", options.examples, "examples that are looked at; 0 = all");
}

void read(MethodSettings& settings, VoitaOptions& options) {
  read_training_settings(settings, options.training);
  settings.read("rounds", options.rounds, "trainings of the search for the penalty");
  settings.read("first_penalty", options.first_penalty, "lambda of the first training");
  settings.read("beta", options.beta, "temperature of the hard concrete");
}

void read(MethodSettings& settings, SubsetOptions& options) {
  read_training_settings(settings, options.training);
  settings.read("first_temperature", options.first_temperature, "of the relaxed choice");
  settings.read("last_temperature", options.last_temperature, "of the relaxed choice");
  settings.read("cooldown", options.cooldown, "share of the steps over which it falls");
  settings.read("straight_through", options.straight_through,
                "hard gates forward, identity backward");
}

void read(MethodSettings& settings, FixedTargetOptions& options) {
  read_training_settings(settings, options.training);
  settings.read("ramp", options.ramp, "share of the steps over which the target falls");
  settings.read("start", options.start, "log_alpha at the start");
  settings.read("beta", options.beta, "temperature of the hard concrete");
}

void read(MethodSettings& settings, CofiOptions& options) {
  read_training_settings(settings, options.training);
  settings.read("ramp", options.ramp, "share of the steps over which the target grows");
  settings.read("start", options.start, "mean of log_alpha at the start");
  settings.read("sublayers", options.sublayers, "whole blocks too, where the model has gates");
  settings.read("neurons", options.neurons, "neurons too, where the model has gates");
  settings.read("hidden", options.hidden, "dimensions of the residual stream too");
  settings.read("absolute", options.absolute, "absolute deviation in the Lagrangian");
  settings.read("distil", options.distil, "from the dense model instead of the objective");
}

template <typename Options>
Options with_training(const PruneOptions& given) {
  Options options;
  options.training = learned_pruning(given, options.training);
  return options;
}

// An entry of the registry around a function with options of its own; `begin` makes them from what
// all methods share.
template <typename Options>
PrunerInfo with_settings(PrunerInfo info, Options (*begin)(const PruneOptions&),
                         StaticPruning (*prune)(GatedModel&, const DataSource&, const Objective&,
                                                const Options&)) {
  MethodSettings none(info.name, "{}");
  Options standard = begin({});
  read(none, standard);
  info.settings = none.known();
  info.prune = [name = info.name, begin, prune](GatedModel& model, const DataSource& data,
                                                const Objective& objective,
                                                const PruneOptions& given) {
    Options options = begin(given);
    MethodSettings settings(name, given.settings);
    read(settings, options);
    settings.check_all_read();
    return prune(model, data, objective, options);
  };
  return info;
}

// A method with a budget of costs takes no counts of heads.
void check_plain_share(const char* method, const TopFractionOptions& share) {
  HEADKIT_CHECK(
      !share.per_layer && share.min_per_layer == 0, "prune",
      std::string("neither per_layer nor min_per_layer for ") + method + ", whose budget is a cost",
      share.per_layer ? "per_layer" : "min_per_layer");
}

std::vector<PrunerInfo> searching_pruners() {
  return {
      with_settings<IterativeOptions>(
          {.name = "iterative",
           .definition = "Removes the heads of least score, scores again with them closed, and so "
                         "on; step = 1 is exact re-estimation",
           .source = "Michel, Levy, Neubig 2019",
           .cost = "(heads that go / step) times the metric",
           .needs = "what the metric needs",
           .prune = nullptr},
          [](const PruneOptions& given) {
            return IterativeOptions{
                .share = given.share, .score = given.score, .compensate = given.compensate};
          },
          &prune_iteratively),
      with_settings<BackwardEliminationOptions>(
          {.name = "backward_elimination",
           .definition = "Removes, one after the other, the head without which the mean loss of "
                         "what is left is lowest",
           .source = "greedy ablation after Michel, Levy, Neubig 2019",
           .cost = "about (heads left + 1) / 2 forwards of what is left, for each step",
           .needs = "labels, or nothing with KL or cosine to the dense model",
           .prune = nullptr},
          [](const PruneOptions& given) {
            return BackwardEliminationOptions{.share = given.share,
                                              .compensate = given.compensate,
                                              .progress = given.score.progress};
          },
          &prune_by_elimination),
      with_settings<KwonOptions>(
          {.name = "kwon",
           .definition = "Mask search by Fisher information under MACs or measured latency, "
                         "rearrangement, and ridge tuning of what stays",
           .source = "Kwon et al. 2022",
           .cost = "1 forward + 1 backward, about 5 forwards for tuning",
           .needs = "labels, or whatever the objective reads",
           .prune = nullptr,
           .budget = "MACs, or latency where tables are given"},
          [](const PruneOptions& given) {
            check_plain_share("kwon", given.share);
            return KwonOptions{.keep = given.share.keep,
                               .compensate = given.compensate,
                               .progress = given.score.progress};
          },
          &prune_kwon),
      with_settings<FlapJointOptions>(
          {.name = "flap_joint",
           .definition = "One order over heads and neurons of all layers by standardised "
                         "fluctuation; means of the dense model replace those that go",
           .source = "An et al. 2024 (FLAP)",
           .cost = "3 forwards",
           .needs = "nothing",
           .prune = nullptr,
           .budget = "weights of attention and feed-forward blocks, or MACs"},
          [](const PruneOptions& given) {
            check_plain_share("flap_joint", given.share);
            FlapJointOptions options{.keep = given.share.keep, .progress = given.score.progress};
            if (given.compensate) options.means = "pruned";
            return options;
          },
          &prune_flap_jointly),
      with_settings<BottomUpOptions>(
          {.name = "bottom_up",
           .definition = "One sublayer after the other from the bottom: scored as the model is by "
                         "then, cut, and re-fitted to the dense model by least squares",
           .source = "in the manner of Park, Choi, Kang 2024 (K-prune)",
           .cost = "a forward and a backward for each layer, about 8 forwards",
           .needs = "labels, or whatever the objective reads",
           .prune = nullptr,
           .budget = "MACs"},
          [](const PruneOptions& given) {
            check_plain_share("bottom_up", given.share);
            return BottomUpOptions{.keep = given.share.keep, .progress = given.score.progress};
          },
          &prune_bottom_up),
      with_settings<ObsOptions>(
          {.name = "obs",
           .definition = "Layer-wise optimal brain surgeon on heads and neurons, greedy between "
                         "sublayers, then output projections re-fitted from the bottom",
           .source = "after Kurtic, Frantar, Alistarh 2023 (ZipLM)",
           .cost = "about 8 forwards, and an F x F update for each neuron that goes",
           .needs = "nothing",
           .prune = nullptr,
           .budget = "MACs"},
          [](const PruneOptions& given) {
            check_plain_share("obs", given.share);
            return ObsOptions{.keep = given.share.keep, .progress = given.score.progress};
          },
          &prune_obs),
      with_settings<VoitaOptions>(
          {.name = "voita",
           .definition = "Trains L0-regularised gates at the penalty whose open heads come nearest "
                         "to the budget; keeps those of largest log_alpha",
           .source = "Voita et al. 2019; Louizos, Welling, Kingma 2018",
           .cost = "rounds x steps forwards and backwards of a batch",
           .needs = "labels, or nothing with KL or cosine to the dense model",
           .prune = nullptr},
          &with_training<VoitaOptions>, &prune_by_voita),
      with_settings<SubsetOptions>(
          {.name = "subset",
           .definition = "Trains a relaxed choice of exactly the heads of the budget (DSP)",
           .source = "Li, Cotterell, Sachan 2021; Xie, Ermon 2019",
           .cost = "steps forwards and backwards of a batch",
           .needs = "labels, or nothing with KL or cosine to the dense model",
           .prune = nullptr},
          &with_training<SubsetOptions>, &prune_by_subset),
      with_settings<FixedTargetOptions>(
          {.name = "fixed_target",
           .definition = "Trains hard concrete gates whose number a Lagrangian drives to the "
                         "budget; keeps those of largest log_alpha",
           .source = "Xia, Gao, Zeng, Chen 2024",
           .cost = "steps forwards and backwards of a batch",
           .needs = "labels, or nothing with KL or cosine to the dense model",
           .prune = nullptr},
          &with_training<FixedTargetOptions>, &prune_by_fixed_target),
      with_settings<CofiOptions>(
          {.name = "cofi",
           .definition = "Trains gates of heads, neurons and whole blocks to a share of weights",
           .source = "Xia, Zhong, Chen 2022",
           .cost = "steps forwards and backwards of a batch",
           .needs = "labels, or nothing with KL or cosine to the dense model",
           .prune = nullptr,
           .budget = "weights of attention and feed-forward blocks"},
          &with_training<CofiOptions>, &prune_by_cofi),
  };
}

}  // namespace

const std::vector<PrunerInfo>& pruners() {
  static const std::vector<PrunerInfo> all = [] {
    std::vector<PrunerInfo> each = one_shot_pruners();
    for (PrunerInfo& method : searching_pruners()) each.push_back(std::move(method));
    return each;
  }();
  return all;
}

const PrunerInfo& find_pruner(const std::string& name) {
  std::string known;
  for (const PrunerInfo& each : pruners()) {
    if (each.name == name) return each;
    known += (known.empty() ? "" : ", ") + each.name;
  }
  throw std::invalid_argument(error_message("prune", "a method among " + known, "'", name, "'"));
}

StaticPruning prune(GatedModel& model, const DataSource& data, const Objective& objective,
                    const std::string& method, const PruneOptions& options) {
  const PrunerInfo& info = find_pruner(method);
  const HashedData seen(data);
  StaticPruning pruning = info.prune(model, seen, objective, options);
  Json details = parse_json("prune", pruning.details);
  details["data_hash"] = seen.hash();
  pruning.details = details.dump();
  return pruning;
}

namespace {

at::Tensor fitting(const at::Tensor& value, const at::Tensor& old, const char* what) {
  HEADKIT_CHECK(
      value.defined() && old.defined() && value.sizes() == old.sizes(), "apply",
      c10::str("a refit of ", what, " of shape ", old.defined() ? old.sizes() : at::IntArrayRef()),
      "shape ", value.defined() ? value.sizes() : at::IntArrayRef());
  HEADKIT_CHECK(value.isfinite().all().item<bool>(), "apply", c10::str("a finite refit of ", what),
                "NaN or infinity");
  return value.to(old.options());
}

std::vector<int64_t> indices_of(const at::Tensor& flags) {
  const at::Tensor places = flags.nonzero().flatten().contiguous();
  const int64_t* first = places.const_data_ptr<int64_t>();
  return {first, first + places.numel()};
}

// A block of `model` as it was and as it will be; its units are those that are there.
struct Swap {
  int64_t layer = 0;
  std::vector<int64_t> kept;
  AttentionWeights attention, old_attention;
  FeedForwardWeights feed_forward, old_feed_forward;
  bool is_feed_forward = false;

  void put(GatedModel& model, bool back) const {
    if (is_feed_forward) {
      model.replace_feed_forward(layer, back ? old_feed_forward : feed_forward, kept);
    } else {
      model.replace_attention(layer, back ? old_attention : attention, kept);
    }
  }
};

Swap swap_of(GatedModel& model, const OutputRefit& refit) {
  Swap swap;
  swap.layer = refit.layer;
  swap.is_feed_forward = refit.feed_forward;
  if (refit.feed_forward) {
    swap.kept = indices_of(model.neurons()[refit.layer]);
    swap.old_feed_forward = swap.feed_forward = model.feed_forward(refit.layer);
    FeedForwardWeights& w = swap.feed_forward;
    w.out = fitting(refit.weight, w.out, "a feed-forward block");
    if (refit.bias.defined()) w.out_bias = fitting(refit.bias, w.out_bias, "its bias");
  } else {
    swap.kept = model.heads().layer_heads(refit.layer);
    swap.old_attention = swap.attention = model.attention(refit.layer);
    AttentionWeights& w = swap.attention;
    w.o = fitting(refit.weight, w.o, "an attention block");
    if (refit.bias.defined()) w.o_bias = fitting(refit.bias, w.o_bias, "its bias");
  }
  return swap;
}

// Output biases that take over what neurons that go added on average.
std::vector<Swap> bias_swaps(GatedModel& model, const StaticPruning& pruning) {
  const at::Tensor& means = pruning.dropped_neurons;
  if (!means.defined()) return {};
  const at::Tensor there = model.neurons();
  const at::Tensor& gates = pruning.gates.neurons;
  HEADKIT_CHECK(gates.defined() && gates.sizes() == there.sizes() && means.sizes() == there.sizes(),
                "apply", c10::str("dropped_neurons and gates of neurons of shape ", there.sizes()),
                "shape ", means.sizes(), gates.defined() ? "" : " and no gates");
  HEADKIT_CHECK(means.isfinite().all().item<bool>(), "apply", "finite dropped_neurons",
                "NaN or infinity");
  const auto in_double = [](const at::Tensor& tensor) {
    return tensor.detach().to(at::kCPU, at::kDouble);
  };
  const at::Tensor replaced = in_double(means) * (1 - in_double(gates));
  std::vector<Swap> swaps;
  for (int64_t layer = 0; layer < there.size(0); ++layer) {
    Swap swap;
    swap.layer = layer;
    swap.is_feed_forward = true;
    swap.kept = indices_of(there[layer]);
    const at::Tensor values = replaced[layer].index_select(0, at::tensor(swap.kept, at::kLong));
    if (values.eq(0).all().item<bool>()) continue;
    swap.old_feed_forward = swap.feed_forward = model.feed_forward(layer);
    FeedForwardWeights& w = swap.feed_forward;
    HEADKIT_CHECK(w.out_bias.defined(), "apply",
                  "a feed-forward block with an output bias, for dropped_neurons",
                  "one without in layer ", layer);
    w.out_bias =
        (in_double(w.out_bias) + at::mv(in_double(w.out), values)).to(w.out_bias.options());
    swaps.push_back(std::move(swap));
  }
  return swaps;
}

}  // namespace

void apply_pruning(GatedModel& model, const StaticPruning& pruning) {
  const c10::NoGradGuard no_grad;
  HEADKIT_CHECK(pruning.refits.empty() || !pruning.dropped_neurons.defined(), "apply",
                "re-fitted weights or dropped_neurons", "both");
  std::vector<Swap> swaps = bias_swaps(model, pruning);
  for (const OutputRefit& refit : pruning.refits) swaps.push_back(swap_of(model, refit));
  // Swaps come before the first cut, at which an encoder notes what it was.
  auto* const encoder = swaps.empty() ? nullptr : dynamic_cast<Encoder*>(&model);
  const std::string base =
      encoder != nullptr && model.is_whole() ? model.fingerprint() : std::string();
  size_t done = 0;
  try {
    for (; done < swaps.size(); ++done) swaps[done].put(model, false);
    remove_units(model, pruning.all_gates());
    if (!base.empty()) encoder->remember_base(base);
  } catch (...) {
    const std::exception_ptr cause = std::current_exception();
    while (done-- > 0) swaps[done].put(model, true);
    std::rethrow_exception(cause);
  }
}

GateSet StaticPruning::all_gates() const {
  GateSet all = gates;
  all.heads = heads.keep().to(at::kDouble);
  if (gates.heads.defined()) all.heads = all.heads * gates.heads.to(at::kCPU, at::kDouble);
  return all;
}

}  // namespace headkit
