#include <ATen/ATen.h>

#include <algorithm>
#include <random>

#include "explain/row_cursor.h"
#include "explain/text_roles.h"
#include "headkit/explain/role_sums.h"

namespace headkit {
namespace {

class RareToken final : public RoleAccumulator {
 public:
  RareToken(const HeadLayout& layout, const RoleMeasure& measure, TokenCounts counts)
      : sums_("rare_token", "", layout), measure_(measure), counts_(std::move(counts)) {}

  void add(const RoleRows& rows) override {
    if (!rows.same_tokens() || !rows.key_tokens.defined()) return;
    const Candidates found = candidates(rows);
    if (found.rarest.empty()) return;
    for (int64_t h = 0; h < rows.heads(); ++h) add_head(rows, h, found);
  }

  void merge(const RoleAccumulator& other) override {
    sums_.merge(dynamic_cast<const RareToken&>(other).sums_);
  }

  void finish(const RoleEnd& end, RoleTable& table) const override {
    add_scores(sums_.scores(end, {.drawn = true}, "tokens are not known"), table);
  }

 private:
  // Positions of the least frequent token, and those that a shuffle moves it to: of the rarer half
  // of the sequence, so that a head that likes rare words gains nothing by that alone.
  struct Candidates {
    std::vector<int64_t> rarest, rarer;
  };

  Candidates candidates(const RoleRows& rows) const {
    const int64_t* tokens = rows.key_tokens.const_data_ptr<int64_t>();
    const bool* special = rows.special_keys.const_data_ptr<bool>();
    const bool* valid = rows.attention.query_valid.const_data_ptr<bool>();
    std::vector<std::pair<int64_t, int64_t>> places;  // frequency, position
    for (int64_t j = 0; j < rows.keys(); ++j) {
      if (special[j] || !valid[j]) continue;
      const auto known = counts_.find(tokens[j]);
      places.emplace_back(known == counts_.end() ? 0 : known->second, j);
    }
    Candidates found;
    if (places.size() < 2) return found;
    std::sort(places.begin(), places.end());
    const size_t half = (places.size() + 1) / 2;
    for (size_t i = 0; i < places.size(); ++i) {
      if (places[i].first == places.front().first) found.rarest.push_back(places[i].second);
      if (i < half || places[i].first == places[half - 1].first) {
        found.rarer.push_back(places[i].second);
      }
    }
    return found;
  }

  void add_head(const RoleRows& rows, int64_t h, const Candidates& found) {
    const SampleAttention& attention = rows.attention;
    const int64_t head = attention.heads[static_cast<size_t>(h)];
    RoleSums::Sums& sums = sums_.of(attention.sample, attention.layer, head);
    RoleSums::Totals& totals = sums_.totals(attention.layer, head);
    const bool* special = rows.special_keys.const_data_ptr<bool>();
    std::vector<bool> is_rare(static_cast<size_t>(rows.keys()));
    for (const int64_t key : found.rarest) is_rare[static_cast<size_t>(key)] = true;
    std::vector<double> looks(static_cast<size_t>(rows.keys())), sights(looks.size());
    RowCursor row(rows, h);
    for (int64_t i = 0; i < rows.queries(); ++i) {
      row.move_to(i);
      if (!row.valid) continue;
      totals.seen += 1;
      totals.excluded += row.special_mass;
      if (1 - row.special_mass < kLeastMass) {
        totals.dropped += 1;
        continue;
      }
      float most = -1;
      double ties = 0, hits = 0, seen = 0, rare_seen = 0;
      size_t looked_at = 0;  // the first of ties
      for (int64_t j = 0; j < rows.keys(); ++j) {
        if (special[j] || !row.allowed[j]) continue;
        const bool rare = is_rare[static_cast<size_t>(j)];
        seen += 1;
        rare_seen += rare;
        if (row.weights[j] > most) {
          most = row.weights[j];
          ties = hits = 0;
          looked_at = static_cast<size_t>(j);
        }
        if (row.weights[j] == most) {
          ties += 1;
          hits += rare;
        }
      }
      looks[looked_at] += 1;
      for (const int64_t key : found.rarer) {
        sights[static_cast<size_t>(key)] += row.allowed[key] ? 1 : 0;
      }
      if (rare_seen == 0) continue;
      sums.score += hits / ties;
      sums.rows += 1;
      totals.uniform += rare_seen / seen;
    }
    shuffle(rows, found, looks, sights, sums_.draws(attention.layer, head));
  }

  // `looks` and `sights` [S]: rows that look at a key, and rows that may see it. Of several keys
  // the rows that may see any are those that may see the most seen, as what queries may see is
  // nested.
  void shuffle(const RoleRows& rows, const Candidates& found, const std::vector<double>& looks,
               const std::vector<double>& sights, std::vector<RoleSums::Sums>& draws) {
    draws.resize(static_cast<size_t>(measure_.draws));
    std::mt19937_64 random(measure_.seed * 0x9E3779B97F4A7C15ULL +
                           static_cast<uint64_t>(rows.attention.sample));
    std::vector<int64_t> places = found.rarer;
    for (RoleSums::Sums& draw : draws) {
      double most = 0;
      for (size_t i = 0; i < found.rarest.size(); ++i) {
        const auto other =
            i + static_cast<size_t>(
                    (static_cast<unsigned __int128>(random()) * (places.size() - i)) >> 64);
        std::swap(places[i], places[other]);
        const auto place = static_cast<size_t>(places[i]);
        draw.score += looks[place];
        most = std::max(most, sights[place]);
      }
      draw.rows += most;
    }
  }

  RoleSums sums_;
  RoleMeasure measure_;
  TokenCounts counts_;
};

}  // namespace

RolePointer rare_token_role(const HeadLayout& layout, const RoleMeasure& measure,
                            TokenCounts counts) {
  return std::make_unique<RareToken>(layout, measure, std::move(counts));
}

}  // namespace headkit
