#include "headkit/explain/faithfulness.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>

#include "core/json_members.h"
#include "headkit/core/error.h"
#include "scorers/resampling.h"

namespace headkit {
namespace {

constexpr auto kOperation = "faithfulness";
constexpr std::array<double, 5> kEraser{0.01, 0.05, 0.1, 0.2, 0.5};
constexpr double kTail = 0.05;

using Set = std::vector<bool>;  // heads that are left

std::vector<int64_t> eraser_counts(int64_t heads) {
  std::vector<int64_t> counts;
  for (const double share : kEraser) {
    counts.push_back(static_cast<int64_t>(std::ceil(share * static_cast<double>(heads) - 1e-9)));
  }
  return counts;  // small models repeat a count, as ERASER does
}

// m of sets, each asked for once.
class Values {
 public:
  Values(const SetValue& value, int64_t heads) : value_(value), heads_(heads) {}

  void ask(const std::vector<Set>& sets) {
    std::vector<Set> fresh;
    for (const Set& set : sets) {
      if (known_.emplace(set, 0).second) fresh.push_back(set);
    }
    if (fresh.empty()) return;
    at::Tensor rows = at::zeros({static_cast<int64_t>(fresh.size()), heads_}, at::kBool);
    bool* out = rows.mutable_data_ptr<bool>();
    for (const Set& set : fresh) {
      for (const bool left : set) *out++ = left;
    }
    const at::Tensor found = value_(rows).detach().to(at::kCPU, at::kDouble).contiguous();
    HEADKIT_CHECK(
        found.dim() == 1 && found.size(0) == rows.size(0) && found.isfinite().all().item<bool>(),
        kOperation, c10::str("finite values of ", rows.size(0), " sets"), "shape ", found.sizes());
    for (size_t i = 0; i < fresh.size(); ++i) {
      known_[fresh[i]] = found.const_data_ptr<double>()[i];
    }
  }
  double operator()(const Set& set) const { return known_.at(set); }

 private:
  const SetValue& value_;
  int64_t heads_;
  std::map<Set, double> known_;
};

// The heads that comprehensiveness or sufficiency leaves when these are the top ones.
Set left_of(const Set& top, bool comprehensive) {
  Set left = top;
  if (comprehensive) left.flip();
  return left;
}

struct Game {
  int64_t heads;
  Values values;
  double all;
  double drop(const Set& top, bool comprehensive) const {
    return all - values(left_of(top, comprehensive));
  }
};

std::vector<Set> tops(const std::vector<int64_t>& order, const std::vector<int64_t>& counts) {
  std::vector<Set> sets;
  for (const int64_t count : counts) {
    Set top(order.size(), false);
    for (int64_t i = 0; i < count; ++i) top[static_cast<size_t>(order[i])] = true;
    sets.push_back(std::move(top));
  }
  return sets;
}

std::vector<double> curve_of(const Game& game, const std::vector<int64_t>& order,
                             const std::vector<int64_t>& counts, bool comprehensive) {
  std::vector<double> values;
  for (const Set& top : tops(order, counts)) values.push_back(game.drop(top, comprehensive));
  return values;
}

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double percentile_of(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return percentile(at::tensor(values, at::kDouble).unsqueeze(1), share).item<double>();
}

struct Bounds {
  double lowest, highest;
};

// How often the grid counts a set of this size.
std::vector<double> weights_of(const std::vector<int64_t>& counts, int64_t heads) {
  std::vector<double> weight(static_cast<size_t>(heads) + 1, 0);
  for (const int64_t k : counts)
    weight[static_cast<size_t>(k)] += 1.0 / static_cast<double>(counts.size());
  return weight;
}

// Over all orders, as paths through the lattice of sets.
Bounds exact_bounds(Game& game, const std::vector<double>& weight, bool comprehensive) {
  const auto heads = static_cast<size_t>(game.heads);
  const size_t count = size_t{1} << heads;
  std::vector<Set> sets(count, Set(heads, false));
  for (size_t mask = 0; mask < count; ++mask) {
    for (size_t h = 0; h < heads; ++h) sets[mask][h] = mask >> h & 1;
  }
  game.values.ask(sets);
  std::vector<double> low(count, 0), high(count, 0);
  for (size_t mask = 1; mask < count; ++mask) {
    const auto size = static_cast<size_t>(std::count(sets[mask].begin(), sets[mask].end(), true));
    const double own = weight[size] > 0 ? weight[size] * game.drop(sets[mask], comprehensive) : 0;
    low[mask] = INFINITY;
    high[mask] = -INFINITY;
    for (size_t h = 0; h < heads; ++h) {
      if (!sets[mask][h]) continue;
      const size_t before = mask & ~(size_t{1} << h);
      low[mask] = std::min(low[mask], low[before] + own);
      high[mask] = std::max(high[mask], high[before] + own);
    }
  }
  return {low.back(), high.back()};
}

double beam_bound(Game& game, const std::vector<double>& weight, bool comprehensive, int64_t width,
                  double sign) {
  struct Path {
    Set top;
    double sum = 0;
    double last = 0;  // breaks ties between counts that the grid leaves out
  };
  const auto heads = static_cast<size_t>(game.heads);
  size_t largest = heads;
  while (weight[largest] == 0) --largest;
  std::vector<Path> beam{{Set(heads, false)}};
  for (size_t size = 1; size <= largest; ++size) {
    std::map<Set, double> grown;
    for (const Path& path : beam) {
      for (size_t h = 0; h < heads; ++h) {
        if (path.top[h]) continue;
        Set top = path.top;
        top[h] = true;
        const auto [place, fresh] = grown.emplace(std::move(top), path.sum);
        if (!fresh && sign * path.sum > sign * place->second) place->second = path.sum;
      }
    }
    std::vector<Set> asked;
    for (const auto& [top, sum] : grown) asked.push_back(left_of(top, comprehensive));
    game.values.ask(asked);
    beam.clear();
    for (const auto& [top, sum] : grown) {
      const double drop = game.drop(top, comprehensive);
      beam.push_back({top, sum + weight[size] * drop, drop});
    }
    std::sort(beam.begin(), beam.end(), [&](const Path& a, const Path& b) {
      return sign * a.sum != sign * b.sum ? sign * a.sum > sign * b.sum
                                          : sign * a.last > sign * b.last;
    });
    if (beam.size() > static_cast<size_t>(width)) beam.resize(static_cast<size_t>(width));
  }
  return beam.front().sum;
}

struct Orders {
  std::vector<int64_t> own, inverse;
  std::vector<std::vector<int64_t>> random;
};

FaithfulnessCurve band_of(const Game& game, const Orders& orders,
                          const std::vector<int64_t>& counts, bool comprehensive) {
  FaithfulnessCurve curve;
  curve.values = curve_of(game, orders.own, counts, comprehensive);
  curve.inverse = curve_of(game, orders.inverse, counts, comprehensive);
  std::vector<std::vector<double>> drawn(counts.size());
  for (const auto& order : orders.random) {
    const std::vector<double> values = curve_of(game, order, counts, comprehensive);
    for (size_t i = 0; i < counts.size(); ++i) drawn[i].push_back(values[i]);
  }
  for (const std::vector<double>& values : drawn) {
    curve.random_lower.push_back(percentile_of(values, kTail));
    curve.random_upper.push_back(percentile_of(values, 1 - kTail));
    curve.random_mean.push_back(mean_of(values));
  }
  return curve;
}

Aopc aopc_of(Game& game, const Orders& orders, const std::string& grid,
             const std::vector<int64_t>& counts, bool comprehensive,
             const FaithfulnessOptions& options) {
  Aopc result;
  result.grid = grid;
  result.value = mean_of(curve_of(game, orders.own, counts, comprehensive));
  result.inverse = mean_of(curve_of(game, orders.inverse, counts, comprehensive));
  std::vector<double> drawn;
  for (const auto& order : orders.random) {
    drawn.push_back(mean_of(curve_of(game, order, counts, comprehensive)));
  }
  result.random_lower = percentile_of(drawn, kTail);
  result.random_upper = percentile_of(drawn, 1 - kTail);
  result.beats_random =
      comprehensive ? result.value > result.random_upper : result.value < result.random_lower;
  const bool exact = game.heads <= options.exact_heads;
  if (!exact && options.beam_width == 0) return result;
  const std::vector<double> weight = weights_of(counts, game.heads);
  Bounds bounds;
  if (exact) {
    bounds = exact_bounds(game, weight, comprehensive);
  } else {
    bounds = {beam_bound(game, weight, comprehensive, options.beam_width, -1),
              beam_bound(game, weight, comprehensive, options.beam_width, 1)};
    // A beam can miss what an order that was tried anyway has found.
    for (const double seen : drawn) {
      bounds = {std::min(bounds.lowest, seen), std::max(bounds.highest, seen)};
    }
    for (const double seen : {result.value, result.inverse}) {
      bounds = {std::min(bounds.lowest, seen), std::max(bounds.highest, seen)};
    }
  }
  result.lowest = bounds.lowest;
  result.highest = bounds.highest;
  const double range = bounds.highest - bounds.lowest;
  if (range > 0) result.normalised = std::clamp((result.value - bounds.lowest) / range, 0.0, 1.0);
  return result;
}

Json curve_json(const FaithfulnessCurve& curve) {
  return {{"values", curve.values},
          {"inverse", curve.inverse},
          {"random",
           {{"lower", curve.random_lower},
            {"upper", curve.random_upper},
            {"mean", curve.random_mean}}}};
}

Json aopc_json(const std::vector<Aopc>& all) {
  Json json = Json::object();
  for (const Aopc& each : all) {
    json[each.grid] = {{"value", each.value},
                       {"inverse", each.inverse},
                       {"random", {{"lower", each.random_lower}, {"upper", each.random_upper}}},
                       {"beats_random", each.beats_random},
                       {"lowest", nullable(each.lowest)},
                       {"highest", nullable(each.highest)},
                       {"normalised", nullable(each.normalised)}};
  }
  return json;
}

}  // namespace

Faithfulness faithfulness(std::span<const int64_t> order, const SetValue& value,
                          const FaithfulnessOptions& options) {
  const auto heads = static_cast<int64_t>(order.size());
  HEADKIT_CHECK(heads >= 1, kOperation, "an order of at least one head", "none");
  std::vector<bool> seen(order.size(), false);
  for (const int64_t head : order) {
    HEADKIT_CHECK(head >= 0 && head < heads && !seen[static_cast<size_t>(head)], kOperation,
                  c10::str("a permutation of 0 to ", heads - 1), head);
    seen[static_cast<size_t>(head)] = true;
  }
  HEADKIT_CHECK(options.grid == "eraser" || options.grid == "all", kOperation,
                "a grid of eraser or all", options.grid);
  HEADKIT_CHECK(options.random_orders >= 1, kOperation, "at least one random order",
                options.random_orders);
  HEADKIT_CHECK(options.beam_width >= 0 && options.exact_heads >= 0 && options.exact_heads <= 20,
                kOperation, "a beam width >= 0 and exact_heads from 0 to 20", options.beam_width,
                " and ", options.exact_heads);

  Orders orders{{order.begin(), order.end()}, {order.rbegin(), order.rend()}, {}};
  std::mt19937_64 random(options.seed);
  for (int64_t i = 0; i < options.random_orders; ++i) {
    std::vector<int64_t> drawn(order.size());
    std::iota(drawn.begin(), drawn.end(), int64_t{0});
    for (auto last = static_cast<int64_t>(drawn.size()) - 1; last > 0; --last) {
      std::swap(drawn[static_cast<size_t>(last)],
                drawn[static_cast<size_t>(draw_below(random, last + 1))]);
    }
    orders.random.push_back(std::move(drawn));
  }

  Faithfulness result;
  result.metric = options.metric;
  result.ablation = options.ablation;
  result.order = orders.own;
  result.random_orders = options.random_orders;
  result.seed = options.seed;
  const std::vector<int64_t> eraser = eraser_counts(heads);
  if (options.grid == "eraser") {
    result.k = eraser;
    result.k.erase(std::unique(result.k.begin(), result.k.end()), result.k.end());
  } else {
    for (int64_t k = 1; k <= heads; ++k) result.k.push_back(k);
  }

  Game game{heads, Values(value, heads), 0};
  std::vector<Set> asked{Set(order.size(), true), Set(order.size(), false)};
  const auto ask_order = [&](const std::vector<int64_t>& own) {
    for (const Set& top : tops(own, result.k)) {
      asked.push_back(left_of(top, true));
      asked.push_back(left_of(top, false));
    }
  };
  ask_order(orders.own);
  ask_order(orders.inverse);
  for (const auto& own : orders.random) ask_order(own);
  game.values.ask(asked);
  game.all = result.value_all = game.values(asked[0]);
  result.value_none = game.values(asked[1]);

  result.comprehensiveness = band_of(game, orders, result.k, true);
  result.sufficiency = band_of(game, orders, result.k, false);
  std::vector<std::pair<std::string, std::vector<int64_t>>> grids{{"eraser", eraser}};
  if (options.grid == "all") grids.emplace_back("all", result.k);
  for (const auto& [name, counts] : grids) {
    result.comprehensiveness_aopc.push_back(aopc_of(game, orders, name, counts, true, options));
    result.sufficiency_aopc.push_back(aopc_of(game, orders, name, counts, false, options));
  }
  if (heads <= options.exact_heads) {
    result.bounds = "exact";
  } else if (options.beam_width > 0) {
    result.bounds = "beam";
    result.beam_width = options.beam_width;
  }
  return result;
}

std::string Faithfulness::to_json() const {
  return Json{{"metric", metric},
              {"ablation", ablation},
              {"level", "L2"},
              {"order", order},
              {"value_all", value_all},
              {"value_none", value_none},
              {"k", k},
              {"random_orders", random_orders},
              {"seed", seed},
              {"comprehensiveness", curve_json(comprehensiveness)},
              {"sufficiency", curve_json(sufficiency)},
              {"aopc",
               {{"comprehensiveness", aopc_json(comprehensiveness_aopc)},
                {"sufficiency", aopc_json(sufficiency_aopc)}}},
              {"bounds", bounds.empty() ? Json(nullptr) : Json(bounds)},
              {"beam_width", beam_width > 0 ? Json(beam_width) : Json(nullptr)}}
      .dump();
}

std::optional<double> gini(std::span<const double> values) {
  std::vector<double> sizes;
  for (const double value : values) sizes.push_back(std::abs(value));
  std::sort(sizes.begin(), sizes.end());
  double sum = 0, weighted = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    sum += sizes[i];
    weighted += static_cast<double>(i + 1) * sizes[i];
  }
  if (sum == 0) return std::nullopt;
  const auto n = static_cast<double>(sizes.size());
  return 2 * weighted / (n * sum) - (n + 1) / n;
}

int64_t heads_for_share(std::span<const double> values, double share) {
  HEADKIT_CHECK(share > 0 && share <= 1, kOperation, "a share in (0, 1]", share);
  std::vector<double> sizes;
  for (const double value : values) sizes.push_back(std::abs(value));
  std::sort(sizes.begin(), sizes.end(), std::greater<>());
  const double whole = std::accumulate(sizes.begin(), sizes.end(), 0.0);
  if (whole == 0) return 0;
  double carried = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    carried += sizes[i];
    // Sums in another order differ by rounding.
    if (carried >= share * whole * (1 - 1e-12)) return static_cast<int64_t>(i) + 1;
  }
  return static_cast<int64_t>(sizes.size());
}

}  // namespace headkit
