#include "attention/sample_queue.h"

#include <algorithm>
#include <thread>

#include "operators/task_queue.h"

namespace headkit {
namespace {

void wait_for(const std::atomic<int64_t>& left) {
  while (left.load(std::memory_order_acquire) != 0) std::this_thread::yield();
}

}  // namespace

SampleQueue::SampleQueue(std::vector<SampleTasks> samples, int64_t threads)
    : threads_(threads), progress_(samples.size()) {
  const int64_t count = static_cast<int64_t>(samples.size());
  int64_t pairs = 0;
  for (int64_t place = 0; place < count; ++place) {
    pairs += samples[place].pairs;
    progress_[place].prepare = samples[place].prepare;
    progress_[place].keys = samples[place].keys;
    progress_[place].pairs = samples[place].pairs;
    progress_[place].outputs = samples[place].outputs;
  }
  // The output of a sample comes this many samples after its pairs.
  const int64_t delay = threads == 1
                            ? 0
                            : std::min(count, (threads * count + std::max<int64_t>(1, pairs) - 1) /
                                                  std::max<int64_t>(1, pairs));
  const int64_t ahead = threads == 1 ? 0 : 1;
  slots_ = std::min(count, delay + ahead + 1);
  const auto push_stage = [&](Stage stage, int64_t place, int64_t SampleTasks::*of_stage) {
    if (place >= 0 && place < count) push(stage, place, samples[place].*of_stage);
  };
  for (int64_t turn = -ahead; turn < count + delay; ++turn) {
    push_stage(Stage::kPrepare, turn + ahead, &SampleTasks::prepare);
    push_stage(Stage::kKeys, turn, &SampleTasks::keys);
    push_stage(Stage::kPair, turn, &SampleTasks::pairs);
    push_stage(Stage::kOutput, turn - delay, &SampleTasks::outputs);
  }
}

void SampleQueue::push(Stage stage, int64_t place, int64_t count) {
  for (int64_t item = 0; item < count; ++item) {
    tasks_.push_back({stage, static_cast<int32_t>(place), static_cast<int32_t>(item)});
  }
}

// Waits for what the task needs, and returns the counter that it takes one from.
std::atomic<int64_t>& SampleQueue::wait_for_turn(const SampleTask& task) {
  Progress& now = progress_[task.place];
  const int64_t before = task.place - slots_;  // the sample that had the slot
  switch (task.stage) {
    case Stage::kPrepare:
      if (before >= 0) wait_for(progress_[before].pairs);
      return now.prepare;
    case Stage::kKeys:
      wait_for(now.prepare);
      return now.keys;
    case Stage::kPair:
      wait_for(now.prepare);
      wait_for(now.keys);
      if (before >= 0) wait_for(progress_[before].outputs);
      return now.pairs;
    case Stage::kOutput:
      break;
  }
  wait_for(now.prepare);
  wait_for(now.pairs);
  return now.outputs;
}

void SampleQueue::run(int64_t scratch_floats,
                      const std::function<void(const SampleTask&, float*)>& run) {
  run_queue(threads_, static_cast<int64_t>(tasks_.size()), scratch_floats,
            [&](int64_t index, float* scratch) {
              const SampleTask& task = tasks_[index];
              std::atomic<int64_t>& left = wait_for_turn(task);
              run(task, scratch);
              left.fetch_sub(1, std::memory_order_release);
            });
}

}  // namespace headkit
