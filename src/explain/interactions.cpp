#include "headkit/explain/interactions.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <vector>

#include "headkit/core/error.h"
#include "scorers/resampling.h"

namespace headkit {
namespace {

constexpr auto kOperation = "interactions";
constexpr int64_t kMostPlayers = 20;  // of whom every set is played

void check_players(int64_t players, int64_t least, int64_t most) {
  HEADKIT_CHECK(players >= least && players <= most, kOperation,
                c10::str(least, " to ", most, " players"), players);
}

at::Tensor bits_of(int64_t players) {
  return at::arange(int64_t{1} << players)
      .unsqueeze(1)
      .bitwise_right_shift(at::arange(players))
      .bitwise_and(1)
      .to(at::kDouble);
}

at::Tensor checked_worth(const at::Tensor& worth, int64_t sets) {
  HEADKIT_CHECK(worth.dim() == 1 && worth.size(0) == sets, kOperation,
                c10::str("the worth of ", sets, " sets"), "shape ", worth.sizes());
  return worth.to(at::kCPU, at::kDouble).contiguous();
}

int64_t players_of(const at::Tensor& worth) {
  HEADKIT_CHECK(worth.defined() && worth.dim() == 1 && worth.size(0) > 0, kOperation,
                "the worth of 2^N sets",
                worth.defined() ? c10::str("shape ", worth.sizes()) : std::string("none"));
  int64_t players = 0;
  while ((int64_t{1} << players) < worth.size(0)) ++players;
  HEADKIT_CHECK(worth.size(0) == int64_t{1} << players && players <= kMostPlayers, kOperation,
                "the worth of 2^N sets, N <= 20", worth.size(0));
  return players;
}

double log_choose(int64_t n, int64_t k) {
  return std::lgamma(n + 1.0) - std::lgamma(k + 1.0) - std::lgamma(n - k + 1.0);
}

// Sets beside none and all, and how much each counts in the fit.
struct Sample {
  at::Tensor sets;     // [n, N]
  at::Tensor weights;  // [n]
  bool exact = false;
};

// (N - 1) / (C(N, s) s (N - s)) of a set of s players.
Sample all_sets(int64_t players) {
  const at::Tensor sets = bits_of(players).slice(0, 1, (int64_t{1} << players) - 1);
  at::Tensor weights = at::empty({sets.size(0)}, at::kDouble);
  const at::Tensor sizes = sets.sum(1);
  for (int64_t i = 0; i < sets.size(0); ++i) {
    const auto size = static_cast<int64_t>(sizes[i].item<double>());
    weights[i] = (players - 1) * std::exp(-log_choose(players, size)) /
                 static_cast<double>(size * (players - size));
  }
  return {sets, weights, true};
}

// Drawn by those weights: first a size, then a set of it, then its complement.
Sample random_sets(int64_t players, int64_t count, uint64_t seed) {
  std::vector<double> upto;  // over sizes 1 .. N-1
  double total = 0;
  for (int64_t size = 1; size < players; ++size) {
    upto.push_back(total += 1.0 / static_cast<double>(size * (players - size)));
  }
  std::mt19937_64 random(seed);
  std::map<std::vector<bool>, double> drawn;
  for (int64_t i = 0; i < count; i += 2) {
    const double place = static_cast<double>(random() >> 11) * 0x1p-53 * total;
    const int64_t size =
        1 + std::min<int64_t>(std::upper_bound(upto.begin(), upto.end(), place) - upto.begin(),
                              players - 2);
    std::vector<bool> set(static_cast<size_t>(players)), other(static_cast<size_t>(players), true);
    const std::vector<int64_t> order = shuffled(random, players);
    for (int64_t k = 0; k < size; ++k) {
      const auto player = static_cast<size_t>(order[static_cast<size_t>(k)]);
      set[player] = true;
      other[player] = false;
    }
    drawn[set] += 1;
    drawn[other] += 1;
  }
  const auto found = static_cast<int64_t>(drawn.size());
  Sample sample{at::zeros({found, players}, at::kDouble), at::empty({found}, at::kDouble), false};
  int64_t row = 0;
  for (const auto& [set, times] : drawn) {
    for (int64_t p = 0; p < players; ++p) {
      if (set[static_cast<size_t>(p)]) sample.sets[row][p] = 1;
    }
    sample.weights[row++] = times;
  }
  return sample;
}

}  // namespace

at::Tensor worth_of_all_sets(const SetWorth& worth, int64_t players) {
  check_players(players, 0, kMostPlayers);
  return checked_worth(worth(bits_of(players)), int64_t{1} << players);
}

SampledShapley sample_shapley(const SetWorth& worth, int64_t players, int64_t orders,
                              uint64_t seed) {
  HEADKIT_CHECK(players >= 1, kOperation, "at least one player", players);
  HEADKIT_CHECK(orders >= 4 && orders % 2 == 0, kOperation, "an even number of orders, 4 or more",
                orders);
  const at::Tensor ends = checked_worth(
      worth(at::stack({at::ones({players}), at::zeros({players})}).to(at::kDouble)), 2);
  std::mt19937_64 random(seed);
  std::vector<at::Tensor> pairs;
  for (int64_t drawn = 0; drawn < orders; drawn += 2) {
    const std::vector<int64_t> order = shuffled(random, players);
    std::vector<at::Tensor> sets;
    std::vector<std::vector<int64_t>> both{order, {order.rbegin(), order.rend()}};
    for (const std::vector<int64_t>& each : both) {
      at::Tensor open = at::ones({players}, at::kDouble);
      for (size_t step = 0; step + 1 < each.size(); ++step) {
        open[each[step]] = 0;
        sets.push_back(open.clone());
      }
    }
    const auto steps = static_cast<int64_t>(sets.size());
    const at::Tensor found =
        sets.empty() ? at::empty({0}, at::kDouble) : checked_worth(worth(at::stack(sets)), steps);
    at::Tensor values = at::zeros({players}, at::kDouble);
    for (int64_t way = 0; way < 2; ++way) {
      const std::vector<int64_t>& each = both[static_cast<size_t>(way)];
      double before = ends[0].item<double>();
      for (int64_t step = 0; step < players; ++step) {
        const double after = step + 1 < players ? found[way * (players - 1) + step].item<double>()
                                                : ends[1].item<double>();
        values[each[static_cast<size_t>(step)]] += (before - after) / 2;
        before = after;
      }
    }
    pairs.push_back(values);
  }
  const at::Tensor table = at::stack(pairs);
  return {table.mean(0), table.std(0) / std::sqrt(static_cast<double>(pairs.size())), orders};
}

at::Tensor shapley_interactions(const at::Tensor& worth) {
  const int64_t players = players_of(worth);
  const at::Tensor values = checked_worth(worth, int64_t{1} << players);
  const double* v = values.const_data_ptr<double>();
  at::Tensor pairs = at::zeros({players, players}, at::kDouble);
  // |S|! (N - |S| - 2)! / (N - 1)!
  std::vector<double> share;
  for (int64_t size = 0; size + 2 <= players; ++size) {
    share.push_back(std::exp(std::lgamma(size + 1.0) + std::lgamma(players - size - 1.0) -
                             std::lgamma(static_cast<double>(players))));
  }
  for (int64_t a = 0; a < players; ++a) {
    for (int64_t b = a + 1; b < players; ++b) {
      const int64_t one = int64_t{1} << a, other = int64_t{1} << b;
      double sum = 0;
      for (int64_t set = 0; set < values.size(0); ++set) {
        if ((set & (one | other)) != 0) continue;
        const double together = v[set | one | other] - v[set | one] - v[set | other] + v[set];
        sum +=
            share[static_cast<size_t>(__builtin_popcountll(static_cast<uint64_t>(set)))] * together;
      }
      pairs[a][b] = pairs[b][a] = sum;
    }
  }
  return pairs;
}

FaithfulInteractions faithful_interactions(const SetWorth& worth, int64_t players, int64_t sets,
                                           uint64_t seed) {
  check_players(players, 2, 64);
  const int64_t pairs = players * (players - 1) / 2, unknown = players + pairs;
  const bool exact = players <= kMostPlayers && (int64_t{1} << players) - 2 <= sets;
  HEADKIT_CHECK(exact || sets >= unknown, kOperation,
                c10::str("at least ", unknown, " sets for ", players, " players"), sets);
  const Sample sample = exact ? all_sets(players) : random_sets(players, sets, seed);
  const int64_t count = sample.sets.size(0);
  const at::Tensor found =
      checked_worth(worth(at::cat({sample.sets, at::ones({1, players}, at::kDouble),
                                   at::zeros({1, players}, at::kDouble)})),
                    count + 2);
  const double none = found[count + 1].item<double>();
  const double all = found[count].item<double>() - none;
  const at::Tensor gain = found.slice(0, 0, count) - none;

  const at::Tensor place = at::triu_indices(players, players, 1);
  const at::Tensor design = at::cat(
      {sample.sets, sample.sets.index_select(1, place[0]) * sample.sets.index_select(1, place[1])},
      1);
  // The sum of all numbers is v(all) - v(none): the last of them follows from the rest.
  const at::Tensor last = design.slice(1, unknown - 1);
  const at::Tensor root = sample.weights.sqrt().unsqueeze(1);
  const at::Tensor left = (design.slice(1, 0, unknown - 1) - last) * root;
  const at::Tensor right = (gain.unsqueeze(1) - all * last) * root;
  const at::Tensor free =
      std::get<0>(at::linalg_lstsq(left, right, /*rcond=*/std::nullopt, /*driver=*/"gelsd"));
  const at::Tensor numbers = at::cat({free, all - free.sum(0, /*keepdim=*/true)}).squeeze(1);

  FaithfulInteractions fit;
  fit.singles = numbers.slice(0, 0, players).contiguous();
  fit.pairs = at::zeros({players, players}, at::kDouble);
  fit.pairs.index_put_({place[0], place[1]}, numbers.slice(0, players));
  fit.pairs = fit.pairs + fit.pairs.t();
  const at::Tensor share = sample.weights / sample.weights.sum();
  const at::Tensor missed = gain - at::mv(design, numbers);
  const double spread = (share * (gain - (share * gain).sum()).square()).sum().item<double>();
  const double residual = (share * missed.square()).sum().item<double>();
  if (spread > 0) fit.explained = 1 - residual / spread;
  fit.sets = count;
  fit.exact = exact;
  return fit;
}

}  // namespace headkit
