#pragma once

#include <cstdint>
#include <functional>

#include "operators/aligned_floats.h"

namespace headkit {

/// Memory that grows and stays, 64-byte aligned.
class Arena {
 public:
  float* reserve(int64_t floats);

 private:
  AlignedFloats data_{nullptr, nullptr};
  int64_t capacity_ = 0;
};

/// Threads that a queue may use: those of torch, or one inside a parallel region and in a forked
/// process.
int64_t queue_threads();

/// Calls `run(task, scratch)` once for each task in [0, tasks). Threads take the next task when
/// they have done one, in ascending order, so a task may wait for earlier ones. `scratch` holds
/// `scratch_floats` floats of the thread's own; what is in there is not kept.
void run_queue(int64_t threads, int64_t tasks, int64_t scratch_floats,
               const std::function<void(int64_t task, float* scratch)>& run);

}  // namespace headkit
