#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "headkit/models/batch.h"

namespace headkit {

/// What was measured of a batch: all that is needed to go on without running it again. Float64,
/// float32, int64 and bool; undefined ones too.
using Measured = std::vector<at::Tensor>;

/// Walks data once: `measure` for every batch with examples (`first` of them were before it), then
/// `take` with what it gave, in the order of the data. Under `SharedWalks` each process measures
/// its part and takes all; under `JournaledWalks` what a journal has is not measured. `measure`
/// must therefore depend on nothing that `measure` or `take` changes. Returns the examples seen.
int64_t for_each_measured(
    const char* operation, const DataSource& data, const Progress& progress,
    const std::function<Measured(const Batch& batch, int64_t first)>& measure,
    const std::function<void(const Batch& batch, const Measured& measured)>& take);

/// The sum of what `measure` gives over all batches, in float64; under `SharedWalks` each process
/// sums its part first, for what is too large to be handed around by batch. Empty without examples.
/// `examples` is set to the number seen.
Measured sum_measured(const char* operation, const DataSource& data, const Progress& progress,
                      const std::function<Measured(const Batch& batch)>& measure,
                      int64_t& examples);

}  // namespace headkit
