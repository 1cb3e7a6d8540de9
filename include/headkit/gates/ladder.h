#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "headkit/core/head_layout.h"
#include "headkit/gates/rung.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// Nested rungs, lowest first: each runs all that the one below it runs. The last is what the
/// ladder calls dense; one that `make_ladder` builds holds there everything that the model has. An
/// immutable value.
class Ladder {
 public:
  Ladder() = default;
  /// Throws std::invalid_argument unless there are at least two rungs of one size, each holding
  /// the one below; the message names what is missing.
  explicit Ladder(std::vector<Rung> rungs);

  int64_t size() const { return static_cast<int64_t>(rungs_.size()); }
  /// std::out_of_range outside 0 .. size-1.
  const Rung& rung(int64_t index) const;
  const std::vector<Rung>& rungs() const { return rungs_; }
  int64_t layers() const { return rungs_.empty() ? 0 : rungs_.front().heads.layers(); }
  /// Layers at the bottom in which rung `index` >= 1 computes what the rung below it does.
  int64_t shared_layers(int64_t index) const;
  /// Throws std::invalid_argument if the rungs are of another model's size.
  void check_model(const char* operation, GatedModel& model) const;

  std::string to_json() const;  ///< {"rungs": [...]}, bit for bit
  static Ladder from_json(const std::string& text);

 private:
  std::vector<Rung> rungs_;
  std::vector<int64_t> shared_layers_;
};

/// FLOPs that layers first .. last-1 of one rung cost for one sample with `tokens` tokens: its
/// heads and the KV heads that these read, its blocks, of what is physically there (core/flops.h).
/// `last` < 0 = all layers.
double rung_flops(GatedModel& model, const Rung& rung, double tokens, int64_t first = 0,
                  int64_t last = -1);

}  // namespace headkit
