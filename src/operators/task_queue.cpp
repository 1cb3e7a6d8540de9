#include "operators/task_queue.h"

#include <ATen/Parallel.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>

#include "operators/rounding.h"

namespace headkit {
namespace {

// The threads of OpenMP's pool do not live on in a forked process, which would wait for them.
std::atomic<bool> forked{false};
[[maybe_unused]] const int kForkHandler =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

}  // namespace

float* Arena::reserve(int64_t floats) {
  if (floats > capacity_) {
    data_.reset();
    capacity_ = 0;
    // What nearly fills a huge page may as well have all of it.
    const int64_t count =
        2 * floats >= kHugePageFloats ? round_up(floats, kHugePageFloats) : floats;
    data_ = aligned_floats(count);
    capacity_ = count;
  }
  return data_.get();
}

int64_t queue_threads() {
  if (forked.load(std::memory_order_relaxed) || at::in_parallel_region()) return 1;
  return std::max(1, at::get_num_threads());
}

void run_queue(int64_t threads, int64_t tasks, int64_t scratch_floats,
               const std::function<void(int64_t task, float* scratch)>& run) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min(threads, tasks), 1, [&](int64_t, int64_t) {
    thread_local Arena arena;
    float* scratch = arena.reserve(std::max<int64_t>(1, scratch_floats));
    for (int64_t task = next++; task < tasks; task = next++) run(task, scratch);
  });
}

}  // namespace headkit
