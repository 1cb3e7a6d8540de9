#include <ATen/ATen.h>

#include <algorithm>
#include <random>

#include "explain/permute.h"
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
    std::vector<Cues> kept;
    if (!rows.all_allowed) {
      const bool* allowed = attention.key_allowed.const_data_ptr<bool>();
      for (const Cues& found : found_) {
        std::copy_if(found.begin(), found.end(), std::back_inserter(kept.emplace_back()),
                     [&](const Cue& cue) { return allowed[cue.row * rows.keys() + cue.key]; });
      }
    }
    const std::vector<Cues>& lists = rows.all_allowed ? found_ : kept;
    if (lists.front().empty()) return;
    count_offsets(attention, lists.front());
    find_scale(rows);
    for (int64_t h = 0; h < rows.heads(); ++h) add_head(rows, h, lists.front());
    for (size_t draw = 1; draw < lists.size(); ++draw) add_draw(rows, draw - 1, lists[draw]);
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

  // What rows are multiplied with, [T, h]: 0 = not counted.
  void find_scale(const RoleRows& rows) {
    const bool* special = rows.special_keys.const_data_ptr<bool>();
    const auto heads = static_cast<size_t>(rows.heads());
    scale_.assign(static_cast<size_t>(rows.queries()) * heads, 1);
    for (int64_t h = 0; h < rows.heads(); ++h) {
      RowCursor row(rows, h);
      for (int64_t i = 0; i < rows.queries(); ++i) {
        row.move_to(i);
        float& scale = scale_[static_cast<size_t>(i) * heads + static_cast<size_t>(h)];
        if (!row.valid) {
          scale = 0;
        } else if (renormalised_) {
          const float self = without_self_ && !special[i] ? row.weights[i] : 0;
          const float left = 1 - row.special_mass - self;
          scale = left < kLeastMass ? 0 : 1 / left;
        }
      }
    }
  }

  void add_head(const RoleRows& rows, int64_t h, const Cues& cues) {
    const SampleAttention& attention = rows.attention;
    const int64_t head = attention.heads[static_cast<size_t>(h)];
    RoleSums::Sums& sums = sums_.of(attention.sample, attention.layer, head);
    RoleSums::Totals& totals = sums_.totals(attention.layer, head);
    const bool* special = rows.special_keys.const_data_ptr<bool>();
    RowCursor row(rows, h);
    for (size_t first = 0; first < cues.size();) {
      const int64_t i = cues[first].row;
      row.move_to(i);
      double mass = 0, keys = 0;
      for (; first < cues.size() && cues[first].row == i; ++first, ++keys) {
        mass += row.weights[cues[first].key];
      }
      const float factor = scale_[static_cast<size_t>(i * rows.heads() + h)];
      totals.seen += 1;
      totals.excluded += factor > 0 ? 1 - 1 / static_cast<double>(factor) : 1;
      if (factor == 0) {
        totals.dropped += 1;
        continue;
      }
      const bool self_out = without_self_ && !special[i] && row.allowed[i];
      const double seen = renormalised_ ? row.content_keys - (self_out ? 1 : 0) : row.keys_allowed;
      sums.score += mass * factor;
      sums.rows += 1;
      totals.uniform += keys / seen;
    }
  }

  // All heads at once: a cue is looked up in a row of their weights.
  void add_draw(const RoleRows& rows, size_t draw, const Cues& cues) {
    const SampleAttention& attention = rows.attention;
    const int64_t heads = rows.heads();
    const float* weights = rows.side_by_side().const_data_ptr<float>();
    score_.assign(static_cast<size_t>(heads), 0);
    count_.assign(static_cast<size_t>(heads), 0);
    int64_t last = -1;
    for (const Cue& cue : cues) {
      const float* found = weights + (cue.row * rows.keys() + cue.key) * heads;
      const float* scale = scale_.data() + cue.row * heads;
      const bool new_row = cue.row != last;
      for (int64_t h = 0; h < heads; ++h) {
        score_[static_cast<size_t>(h)] += found[h] * scale[h];
      }
      for (int64_t h = 0; new_row && h < heads; ++h) {
        count_[static_cast<size_t>(h)] += scale[h] > 0 ? 1.0F : 0.0F;
      }
      last = cue.row;
    }
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<RoleSums::Sums>& draws =
          sums_.draws(attention.layer, attention.heads[static_cast<size_t>(h)]);
      if (draws.size() <= draw) draws.resize(static_cast<size_t>(measure_.draws));
      draws[draw].score += score_[static_cast<size_t>(h)];
      draws[draw].rows += count_[static_cast<size_t>(h)];
    }
  }

  RoleSums sums_;
  OffsetHits offsets_;
  RoleMeasure measure_;
  bool renormalised_, without_self_;
  int64_t sample_ = -1;
  at::Tensor tokens_;
  std::vector<Cues> found_;
  std::vector<float> scale_, score_, count_;
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
