#include "headkit/scorers/shapley.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "core/json.h"
#include "distributed/measured_walk.h"
#include "headkit/core/error.h"
#include "models/dense_output.h"
#include "scorers/resampling.h"
#include "scorers/score_sample.h"

namespace headkit {
namespace {

constexpr char kName[] = "shapley";
constexpr int64_t kExactPlayers = 20;
constexpr int64_t kTokensAtOnce = 16384;  // bounds the memory of one gated forward
constexpr int64_t kPairsBeforeStop = 8;   // an interval of fewer is worth nothing

// Minus the losses of the examples with exactly some heads open.
class HeadGame {
 public:
  HeadGame(GatedModel& model, const DataSource& data, const Objective& objective,
           const ScoreOptions& options)
      : model_(model), data_(data), objective_(objective), options_(options) {}

  // `open` [V, L, H] -> [V, n], in double.
  at::Tensor worth(const at::Tensor& open) {
    const c10::NoGradGuard no_grad;
    const HeadLayout layout = model_.layout();
    std::vector<at::Tensor> parts;
    const auto measure = [&](const Batch& batch, int64_t) -> Measured {
      const int64_t examples = batch_size(batch);
      const ModelState state = model_.embed(batch);
      const at::Tensor dense = dense_output(model_, objective_, state);
      const auto dtype = state.hidden.options().dtype(
          state.hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
      const int64_t at_once = std::max<int64_t>(
          kTokensAtOnce / std::max<int64_t>(examples * state.hidden.size(1), 1), 1);
      at::Tensor found = at::empty({open.size(0), examples}, at::kDouble);
      for (int64_t first = 0; first < open.size(0); first += at_once) {
        const int64_t variants = std::min(at_once, open.size(0) - first);
        const at::Tensor index = at::arange(examples).repeat({variants});
        GateSet gates;
        gates.heads =
            open.slice(0, first, first + variants).repeat_interleave(examples, 0).to(dtype);
        if (options_.dropped_output.defined()) {
          gates.dropped_output = options_.dropped_output.to(state.hidden.options());
        }
        const at::Tensor output =
            model_.head(model_.run(model_.select(state, index), 0, layout.layers, gates));
        const at::Tensor compared =
            dense.defined() ? dense.index_select(0, index.to(dense.device())) : at::Tensor();
        found.slice(0, first, first + variants)
            .copy_(-checked_losses(kName,
                                   objective_.loss(output, select_examples(batch, index), compared),
                                   variants * examples)
                        .reshape({variants, examples}));
      }
      return {found};
    };
    const Progress all_walks = [&](int64_t, int64_t) {
      if (options_.progress) options_.progress(++done_, -1);
    };
    for_each_measured(
        kName, data_, all_walks, measure,
        [&](const Batch&, const Measured& measured) { parts.push_back(measured[0]); });
    HEADKIT_CHECK(!parts.empty(), kName, "data with at least one example", "none");
    return at::cat(parts, 1);
  }

 private:
  GatedModel& model_;
  const DataSource& data_;
  const Objective& objective_;
  const ScoreOptions& options_;
  int64_t done_ = 0;
};

// The players are the heads that are there.
struct Players {
  std::vector<int64_t> place;  // in [L * H]
  int64_t layers = 0, heads = 0;

  explicit Players(const HeadMask& present) : layers(present.layers()), heads(present.heads()) {
    for (int64_t layer = 0; layer < layers; ++layer) {
      for (int64_t head : present.layer_heads(layer)) place.push_back(layer * heads + head);
    }
  }
  int64_t count() const { return static_cast<int64_t>(place.size()); }
  // [.., players] -> [.., L, H]
  at::Tensor spread(const at::Tensor& values) const {
    at::Tensor all = at::zeros({values.size(0), layers * heads}, at::kDouble);
    all.index_copy_(1, at::tensor(place, at::kLong), values);
    return all.reshape({-1, layers, heads});
  }
};

// Orders of closing heads that run together. Each is followed until its end, or until the worth
// comes within `tolerance` of that of no heads.
struct Course {
  std::vector<int64_t> order;     // players
  at::Tensor open;                // [players]
  std::vector<double> marginals;  // by player
  double before = 0;
  int64_t step = 0;
  bool truncated = false;
};

// Whether the `rank` best are apart from the rest at this level.
bool separated(const at::Tensor& mean, const at::Tensor& half, int64_t rank) {
  const at::Tensor order = mean.argsort(0, /*descending=*/true);
  const at::Tensor low = (mean - half).index_select(0, order.slice(0, 0, rank)).min();
  const at::Tensor high = (mean + half).index_select(0, order.slice(0, rank)).max();
  return low.item<double>() > high.item<double>();
}

}  // namespace

at::Tensor shapley_values(const at::Tensor& values) {
  const int64_t sets = values.defined() && values.dim() >= 1 ? values.size(0) : 0;
  int64_t players = 0;
  while ((int64_t{1} << players) < sets && players <= kExactPlayers) ++players;
  HEADKIT_CHECK(sets > 0 && sets == int64_t{1} << players && players <= kExactPlayers &&
                    values.dim() <= 2 && values.scalar_type() == at::kDouble,
                "shapley_values", "float64 values of 2^N sets, N <= 20, [sets] or [sets, games]",
                values.defined() ? c10::str(values.scalar_type(), " of shape ", values.sizes())
                                 : std::string("none"));
  // |S|! (N - |S| - 1)! / N! by size of S
  std::vector<double> share(static_cast<size_t>(players), 1.0);
  for (int64_t size = 0; size < players; ++size) {
    share[static_cast<size_t>(size)] = std::exp(
        std::lgamma(size + 1.0) + std::lgamma(players - size) - std::lgamma(players + 1.0));
  }
  const at::Tensor table = values.reshape({sets, -1}).contiguous();
  at::Tensor found = at::zeros({players, table.size(1)}, at::kDouble);
  for (int64_t player = 0; player < players; ++player) {
    std::vector<int64_t> with, without;
    std::vector<double> weight;
    for (int64_t set = 0; set < sets; ++set) {
      if ((set >> player & 1) != 0) continue;
      without.push_back(set);
      with.push_back(set | int64_t{1} << player);
      weight.push_back(
          share[static_cast<size_t>(__builtin_popcountll(static_cast<uint64_t>(set)))]);
    }
    const at::Tensor marginal = table.index_select(0, at::tensor(with, at::kLong)) -
                                table.index_select(0, at::tensor(without, at::kLong));
    found[player].copy_(at::mv(marginal.t(), at::tensor(weight, at::kDouble)));
  }
  return values.dim() == 1 ? found.squeeze(1) : found;
}

HeadScores ShapleyScorer::score(GatedModel& model, const DataSource& data,
                                const Objective& objective, const ScoreOptions& options) const {
  check_score_options(options);
  HEADKIT_CHECK(options_.permutations >= 2, kName, "at least two permutations",
                options_.permutations);
  HEADKIT_CHECK(options_.tolerance >= 0, kName, "a tolerance >= 0", options_.tolerance);
  const auto mode = model.evaluating();
  const Players players(model.heads());
  const int64_t count = players.count();
  HEADKIT_CHECK(count > 0, kName, "at least one head", "none");
  HEADKIT_CHECK(options_.rank >= 0 && options_.rank < count, kName,
                "a rank from 0 to " + std::to_string(count - 1), options_.rank);
  HeadScores scores;
  scores.metric = kName;
  scores.objective = objective.name();
  Json settings = {{"normalization", options.normalization},
                   {"compensated", options.dropped_output.defined()}};
  HeadGame game(model, data, objective, options);

  if (options_.exact && count <= kExactPlayers &&
      int64_t{1} << count <= options_.permutations * count) {
    const int64_t sets = int64_t{1} << count;
    const at::Tensor bits =
        at::arange(sets).unsqueeze(1).bitwise_right_shift(at::arange(count)).bitwise_and(1);
    const at::Tensor worth = game.worth(players.spread(bits.to(at::kDouble)));  // [sets, n]
    scores.samples = worth.size(1);
    ScoreSample sample;
    sample.add(players.spread(shapley_values(worth).t()), at::ones({scores.samples}, at::kDouble));
    if (sample.all_zero()) fail_all_zero(kName, objective);
    sample.summarise(options, scores);
    settings.update({{"exact", true},
                     {"bootstrap", options.bootstrap},
                     {"v_all", worth[sets - 1].mean().item<double>()},
                     {"v_none", worth[0].mean().item<double>()}});
    scores.settings = settings.dump();
    return scores;
  }

  const at::Tensor ends = game.worth(
      players.spread(at::stack({at::ones({count}), at::zeros({count})}).to(at::kDouble)));
  scores.samples = ends.size(1);
  const double v_all = ends[0].mean().item<double>(), v_none = ends[1].mean().item<double>();
  const double z = normal_quantile(0.5 + options.confidence / 2);
  // Without truncation the whole course is known beforehand: one walk over the data.
  const int64_t stage = options_.tolerance > 0 ? std::max<int64_t>(count / 8, 1) : count;
  std::mt19937_64 random(options.seed);
  std::vector<at::Tensor> pairs;
  int64_t cut = 0;
  bool apart = false;
  at::Tensor mean, half;
  for (int64_t drawn = 0; drawn + 2 <= options_.permutations && !apart; drawn += 2) {
    const std::vector<int64_t> order = shuffled(random, count);
    std::vector<Course> courses;
    for (const auto& each : {order, std::vector<int64_t>(order.rbegin(), order.rend())}) {
      courses.push_back({each, at::ones({count}, at::kDouble),
                         std::vector<double>(static_cast<size_t>(count), 0.0), v_all, 0, false});
    }
    while (true) {
      std::vector<at::Tensor> sets;
      std::vector<Course*> owners;
      for (Course& course : courses) {
        at::Tensor open = course.open.clone();
        const int64_t last = std::min(course.step + stage, count);
        for (int64_t step = course.step; step < last && !course.truncated; ++step) {
          open[course.order[static_cast<size_t>(step)]] = 0;
          sets.push_back(open.clone());
          owners.push_back(&course);
        }
      }
      if (sets.empty()) break;
      const at::Tensor found = game.worth(players.spread(at::stack(sets))).mean(1);
      for (size_t i = 0; i < owners.size(); ++i) {
        Course& course = *owners[i];
        if (course.truncated) continue;
        const double after = found[static_cast<int64_t>(i)].item<double>();
        course.marginals[static_cast<size_t>(course.order[static_cast<size_t>(course.step)])] =
            course.before - after;
        course.before = after;
        course.open = sets[i];
        ++course.step;
        if (options_.tolerance > 0 && std::abs(after - v_none) <= options_.tolerance) {
          course.truncated = true;
          cut += count - course.step;
        }
      }
    }
    pairs.push_back((at::tensor(courses[0].marginals, at::kDouble) +
                     at::tensor(courses[1].marginals, at::kDouble)) /
                    2);
    const at::Tensor table = at::stack(pairs);
    mean = table.mean(0);
    const auto rows = static_cast<double>(pairs.size());
    half = pairs.size() < 2 ? at::Tensor() : z * table.std(0) / std::sqrt(rows);
    apart = options_.rank > 0 && static_cast<int64_t>(pairs.size()) >= kPairsBeforeStop &&
            separated(mean, half, options_.rank);
  }
  if (mean.eq(0).all().item<bool>()) fail_all_zero(kName, objective);
  const auto permutations = static_cast<int64_t>(2 * pairs.size());
  ScoreOptions without_interval = options;
  without_interval.bootstrap = 0;
  summarise_scores(without_interval, players.spread(mean.unsqueeze(0))[0], 0, {}, scores);
  if (half.defined() && options.normalization == "none") {
    scores.lower = players.spread((mean - half).unsqueeze(0))[0].contiguous();
    scores.upper = players.spread((mean + half).unsqueeze(0))[0].contiguous();
  }
  settings.update(
      {{"exact", false},
       {"permutations", permutations},
       {"tolerance", options_.tolerance},
       {"truncated", static_cast<double>(cut) / static_cast<double>(permutations * count)},
       {"separated", apart},
       {"v_all", v_all},
       {"v_none", v_none}});
  scores.settings = settings.dump();
  return scores;
}

}  // namespace headkit
