#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "headkit/models/gated_model.h"
#include "headkit/pruners/latency_table.h"

namespace headkit {

/// Settings of the measurements behind a `LatencyModel`.
struct LatencyModelOptions {
  std::vector<int64_t> tokens{16, 64,
                              256};    ///< lengths to measure; a batch of fixed length: its own
  std::vector<int64_t> batches{1, 8};  ///< batch sizes to measure
  int64_t repeats = 3;                 ///< each entry is the least of so many runs
  /// What measuring may take: sizes that would exceed it are scaled from smaller ones.
  double seconds = 0.8;
  /// Also over blocks of neurons, for a model whose feed-forward blocks have gates of them.
  bool blocks = false;
};

/// Measured milliseconds of a whole gated model over heads and neuron blocks that run, length and
/// batch size, for budgets in time; a value that can be stored.
///
/// Layer 0 is run under gates, the way it is deployed (gates, plan and skipping included), with
/// shares of its heads and blocks open; all layers are taken to be alike, heads and blocks to add
/// up. Entries never fall with heads, blocks, length or batch size (isotonic fits); between
/// measured points they are interpolated, beyond the largest they grow in proportion.
class LatencyModel {
 public:
  /// `batch`: any batch of the model, whose rows and tokens are repeated or cut to the sizes. Cost:
  /// `options.seconds` and one run more. Throws std::invalid_argument for options out of range.
  static LatencyModel measure(GatedModel& model, const Batch& batch,
                              const LatencyModelOptions& options = {});

  /// Of one batch: `heads` and `blocks` are means of a sample over all layers (blocks ignored where
  /// the model has no gates of them).
  double milliseconds(double heads, double blocks, int64_t tokens, int64_t batch) const;
  /// The same as tables of the static pruners (KwonOptions), in seconds.
  LatencyTables tables(int64_t tokens, int64_t batch) const;

  /// Device, instruction set, threads, library and shape: what the measurements hold for.
  const std::string& key() const { return key_; }
  static std::string key_of(GatedModel& model, const Batch& batch);
  int64_t measured_sizes() const { return measured_; }  ///< sizes that were timed, not scaled
  std::string to_json() const;
  /// Throws std::invalid_argument where the measurements are of another key.
  static LatencyModel from_json(const std::string& text, const std::string& key);
  void save(const std::string& path) const;
  static LatencyModel load(const std::string& path, const std::string& key);

 private:
  struct Size {
    std::vector<double> heads;   // ms of a layer with 0, 1/4, .. of its heads, all blocks
    std::vector<double> blocks;  // ms of a layer with 0, 1/2, .. of its blocks, all heads; or empty
    double other = 0;            // ms of embedding and head of the model
  };
  Size at(double tokens, double batch) const;

  std::string key_;
  HeadLayout layout_;
  std::vector<int64_t> tokens_, batches_;
  std::vector<Size> sizes_;  // by tokens, then batch
  int64_t measured_ = 0;
};

}  // namespace headkit
