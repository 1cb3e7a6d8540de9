#pragma once

#include <cstdint>
#include <vector>

#include "headkit/models/gated_model.h"

namespace headkit {

/// Settings of `measure_latency`.
struct LatencyOptions {
  int64_t layer = 0;           ///< the layer whose weights are timed
  int64_t neuron_entries = 8;  ///< entries of the table of neurons, a divisor of their number
  int64_t repeats = 5;         ///< each entry is the least of so many runs
};

/// Seconds, as KwonOptions takes them.
struct LatencyTables {
  std::vector<double> heads;    ///< of an attention block with 1, 2, .. H heads
  std::vector<double> neurons;  ///< of a feed-forward block with evenly many neurons in each entry;
                                ///< empty where the model shows no feed-forward blocks
  double other = 0;             ///< of the whole model less all its blocks
};

/// Times headkit's operators on slices of the model's own weights, with the hidden states of
/// `batch` before layer 0, on the threads that torch has now. The model is not changed. Throws
/// std::invalid_argument for a model that lost heads or neurons, a number of entries that does not
/// divide the neurons, or repeats < 1.
LatencyTables measure_latency(GatedModel& model, const Batch& batch,
                              const LatencyOptions& options = {});

}  // namespace headkit
