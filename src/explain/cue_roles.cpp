#include <ATen/ATen.h>

#include <algorithm>
#include <random>

#include "explain/row_cursor.h"
#include "explain/text_roles.h"
#include "headkit/explain/role_sums.h"

namespace headkit {
namespace {

struct Cue {
  int64_t row = 0;
  int64_t key = 0;
};
using Cues = std::vector<Cue>;  // by row

// Not std::shuffle, whose numbers differ between standard libraries.
template <typename Entries>
void permute(std::mt19937_64& random, Entries& entries) {
  for (size_t i = entries.size(); i > 1; --i) {
    const auto other = (static_cast<unsigned __int128>(random()) * i) >> 64;
    std::swap(entries[i - 1], entries[static_cast<size_t>(other)]);
  }
}

// Mass on the keys of cues, over rows that have one. Cues of a sample are found once and serve all
// of its blocks, as do those of its shuffles.
class CueRole : public RoleAccumulator {
 public:
  CueRole(const std::string& role, const HeadLayout& layout, const RoleMeasure& measure,
          bool renormalised, bool without_self)
      : sums_(role, "", layout),
        offsets_(layout.layers),
        measure_(measure),
        renormalised_(renormalised),
        without_self_(without_self) {}

  void add(const RoleRows& rows) override {
    if (!rows.same_tokens() || rows.heads() == 0 || !find(rows)) return;
    const SampleAttention& attention = rows.attention;
    const bool* allowed = attention.key_allowed.const_data_ptr<bool>();
    const auto is_allowed = [&](const Cue& cue) {
      return allowed[cue.row * rows.keys() + cue.key];
    };
    std::vector<Cues> lists;
    for (const Cues& found : found_) {
      Cues& kept = lists.emplace_back();
      std::copy_if(found.begin(), found.end(), std::back_inserter(kept), is_allowed);
    }
    if (lists.front().empty()) return;
    count_offsets(attention, lists.front());
    std::vector<float> scale(static_cast<size_t>(rows.queries()));
    for (int64_t h = 0; h < rows.heads(); ++h) add_head(rows, h, lists, scale);
  }

  void merge(const RoleAccumulator& other) override {
    const auto& from = dynamic_cast<const CueRole&>(other);
    sums_.merge(from.sums_);
    offsets_.merge(from.offsets_);
  }

  void finish(const RoleEnd& end, RoleTable& table) const override {
    add_scores(sums_.scores(end, {.drawn = true, .offsets = &offsets_}, "no row has such a cue"),
               table);
  }

 protected:
  // Cues of a sample first, then those of each shuffle; empty if there are none.
  virtual std::vector<Cues> cues_of(const RoleRows& rows, std::mt19937_64& random) const = 0;
  const RoleMeasure& measure() const { return measure_; }

 private:
  // Whether the sample has cues, from memory if they are known.
  bool find(const RoleRows& rows) {
    if (!rows.query_tokens.defined()) return false;
    const bool known = sample_ == rows.attention.sample && tokens_.defined() &&
                       at::equal(tokens_, rows.query_tokens);
    if (!known) {
      sample_ = rows.attention.sample;
      tokens_ = rows.query_tokens;
      std::mt19937_64 random(measure_.seed * 0x9E3779B97F4A7C15ULL +
                             static_cast<uint64_t>(sample_));
      found_ = cues_of(rows, random);
    }
    return !found_.empty();
  }

  void count_offsets(const SampleAttention& attention, const Cues& cues) {
    int64_t count = 0, last = -1;
    for (const Cue& cue : cues) {
      offsets_.add_hit(attention.sample, attention.layer, cue.key - cue.row);
      count += cue.row != last;
      last = cue.row;
    }
    offsets_.add_rows(attention.sample, attention.layer, count);
  }

  void add_head(const RoleRows& rows, int64_t h, const std::vector<Cues>& lists,
                std::vector<float>& scale) {
    const SampleAttention& attention = rows.attention;
    const int64_t head = attention.heads[static_cast<size_t>(h)];
    RoleSums::Sums& sums = sums_.of(attention.sample, attention.layer, head);
    RoleSums::Totals& totals = sums_.totals(attention.layer, head);
    const bool* special = rows.special_keys.const_data_ptr<bool>();
    RowCursor row(rows, h);
    for (int64_t i = 0; i < rows.queries(); ++i) {
      row.move_to(i);
      scale[static_cast<size_t>(i)] = 1;
      if (!row.valid) {
        scale[static_cast<size_t>(i)] = 0;
      } else if (renormalised_) {
        const float self = without_self_ && !special[i] ? row.weights[i] : 0;
        const float left = 1 - row.special_mass - self;
        scale[static_cast<size_t>(i)] = left < kLeastMass ? 0 : 1 / left;
      }
    }
    const Cues& own = lists.front();
    for (size_t first = 0; first < own.size();) {
      const int64_t i = own[first].row;
      row.move_to(i);
      double mass = 0, keys = 0;
      for (; first < own.size() && own[first].row == i; ++first, ++keys) {
        mass += row.weights[own[first].key];
      }
      const float factor = scale[static_cast<size_t>(i)];
      totals.seen += 1;
      totals.excluded += factor > 0 ? 1 - 1 / static_cast<double>(factor) : 1;
      if (factor == 0) {
        totals.dropped += 1;
        continue;
      }
      double seen = row.keys_allowed;
      if (renormalised_) {
        for (int64_t j = 0; j < rows.keys(); ++j) {
          seen -= row.allowed[j] && (special[j] || (without_self_ && j == i)) ? 1 : 0;
        }
      }
      sums.score += mass * factor;
      sums.rows += 1;
      totals.uniform += keys / seen;
    }
    if (lists.size() == 1) return;
    std::vector<RoleSums::Sums>& draws = sums_.draws(attention.layer, head);
    draws.resize(lists.size() - 1);
    const float* weights =
        attention.probabilities.const_data_ptr<float>() + h * rows.queries() * rows.keys();
    for (size_t draw = 0; draw + 1 < lists.size(); ++draw) {
      double score = 0;
      int64_t count = 0, last = -1;
      for (const Cue& cue : lists[draw + 1]) {
        const float factor = scale[static_cast<size_t>(cue.row)];
        score += static_cast<double>(weights[cue.row * rows.keys() + cue.key]) * factor;
        count += cue.row != last && factor > 0;
        last = cue.row;
      }
      draws[draw].score += score;
      draws[draw].rows += static_cast<double>(count);
    }
  }

  RoleSums sums_;
  OffsetHits offsets_;
  RoleMeasure measure_;
  bool renormalised_, without_self_;
  int64_t sample_ = -1;
  at::Tensor tokens_;
  std::vector<Cues> found_;
};

// Cues of tokens that occurred before; a shuffle puts the tokens in another order.
class RepeatRole final : public CueRole {
 public:
  enum class Look { kCopies, kAfterLatest, kAfterAny };
  RepeatRole(const std::string& role, Look look, const HeadLayout& layout,
             const RoleMeasure& measure)
      : CueRole(role, layout, measure, /*renormalised=*/true,
                /*without_self=*/look == Look::kCopies),
        look_(look) {}

 protected:
  std::vector<Cues> cues_of(const RoleRows& rows, std::mt19937_64& random) const override {
    const int64_t* tokens = rows.query_tokens.const_data_ptr<int64_t>();
    const bool* special = rows.special_keys.const_data_ptr<bool>();
    const bool* valid = rows.attention.query_valid.const_data_ptr<bool>();
    std::unordered_map<int64_t, int64_t> names;
    std::vector<int64_t> places, ids;
    for (int64_t i = 0; i < rows.queries(); ++i) {
      if (special[i] || !valid[i]) continue;
      const auto name = static_cast<int64_t>(names.size());
      places.push_back(i);
      ids.push_back(names.try_emplace(tokens[i], name).first->second);
    }
    if (names.size() == ids.size()) return {};
    const std::vector<bool> hidden(special, special + rows.keys());
    std::vector<Cues> all{find(places, ids, hidden, names.size())};
    for (int64_t draw = 0; draw < measure().draws; ++draw) {
      permute(random, ids);
      all.push_back(find(places, ids, hidden, names.size()));
    }
    return all;
  }

 private:
  // `ids` of the tokens at `places`, below `count`.
  Cues find(const std::vector<int64_t>& places, const std::vector<int64_t>& ids,
            const std::vector<bool>& hidden, size_t count) const {
    std::vector<int64_t> latest(count, -1), before(ids.size(), -1);
    Cues cues;
    const auto after = [&](int64_t row, int64_t earlier) {
      const int64_t key = places[static_cast<size_t>(earlier)] + 1;
      if (!hidden[static_cast<size_t>(key)]) cues.push_back({row, key});
    };
    for (size_t i = 0; i < ids.size(); ++i) {
      int64_t& last = latest[static_cast<size_t>(ids[i])];
      before[i] = last;
      if (look_ == Look::kAfterLatest && last >= 0) after(places[i], last);
      for (int64_t j = last; j >= 0 && look_ != Look::kAfterLatest;
           j = before[static_cast<size_t>(j)]) {
        if (look_ == Look::kAfterAny) {
          after(places[i], j);
        } else {
          cues.push_back({places[i], places[static_cast<size_t>(j)]});
        }
      }
      last = static_cast<int64_t>(i);
    }
    return cues;
  }

  Look look_;
};

// Rows of the second copy look at the token after the same token of the first; a shuffle gives them
// each other's keys.
class RandomStripe final : public CueRole {
 public:
  RandomStripe(const HeadLayout& layout, const RoleMeasure& measure, std::vector<int64_t> lengths,
               int64_t begin)
      : CueRole("random_stripe", layout, measure, /*renormalised=*/false, /*without_self=*/false),
        lengths_(std::move(lengths)),
        begin_(begin) {}

 protected:
  std::vector<Cues> cues_of(const RoleRows& rows, std::mt19937_64& random) const override {
    const int64_t length = lengths_.at(static_cast<size_t>(rows.attention.sample));
    std::vector<int64_t> keys;
    for (int64_t i = 0; i < length; ++i) keys.push_back(begin_ + i + 1);
    std::vector<Cues> all{stripe(keys)};
    for (int64_t draw = 0; draw < measure().draws; ++draw) {
      permute(random, keys);
      all.push_back(stripe(keys));
    }
    return all;
  }

 private:
  Cues stripe(const std::vector<int64_t>& keys) const {
    Cues cues;
    for (size_t i = 0; i < keys.size(); ++i) {
      cues.push_back({begin_ + static_cast<int64_t>(keys.size() + i), keys[i]});
    }
    return cues;
  }

  std::vector<int64_t> lengths_;
  int64_t begin_;
};

}  // namespace

RolePointer duplicate_token_role(const HeadLayout& layout, const RoleMeasure& measure) {
  return std::make_unique<RepeatRole>("duplicate_token", RepeatRole::Look::kCopies, layout,
                                      measure);
}

RolePointer natural_mass_role(const HeadLayout& layout, const RoleMeasure& measure) {
  return std::make_unique<RepeatRole>("natural_mass", RepeatRole::Look::kAfterLatest, layout,
                                      measure);
}

RolePointer natural_any_prior_role(const HeadLayout& layout, const RoleMeasure& measure) {
  return std::make_unique<RepeatRole>("natural_any_prior", RepeatRole::Look::kAfterAny, layout,
                                      measure);
}

RolePointer random_stripe_role(const HeadLayout& layout, const RoleMeasure& measure,
                               std::vector<int64_t> lengths, int64_t begin) {
  return std::make_unique<RandomStripe>(layout, measure, std::move(lengths), begin);
}

}  // namespace headkit
