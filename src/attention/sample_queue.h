#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

namespace headkit {

/// The stages of a sample, in the order of the data.
enum class Stage : int8_t { kPrepare, kKeys, kPair, kOutput };

/// How many tasks each stage of one sample has.
struct SampleTasks {
  int64_t prepare = 1;
  int64_t keys = 0;
  int64_t pairs = 0;
  int64_t outputs = 0;
};

struct SampleTask {
  Stage stage;
  int32_t place;  // of the sample in the order of work
  int32_t item;
};

/// Runs the stages of many samples over threads. A pair waits for the tokens and keys of its
/// sample, an output for the pairs; while it waits, pairs of other samples run, so that nobody
/// idles. What stages hand on lives in a ring of slots, that of a sample is `place % slots()`: a
/// sample waits until the one before it in the slot is done.
class SampleQueue {
 public:
  /// `samples` in the order of work.
  SampleQueue(std::vector<SampleTasks> samples, int64_t threads);

  int64_t slots() const { return slots_; }
  /// Once; `scratch` as in `run_queue`.
  void run(int64_t scratch_floats,
           const std::function<void(const SampleTask& task, float* scratch)>& run);

 private:
  // What is left of a sample's stages. A task waits for counters of tasks before it in the queue
  // and for nothing else; those have been taken by running threads, so waiting always ends.
  struct Progress {
    std::atomic<int64_t> prepare{0}, keys{0}, pairs{0}, outputs{0};
  };

  void push(Stage stage, int64_t place, int64_t count);
  std::atomic<int64_t>& wait_for_turn(const SampleTask& task);

  const int64_t threads_;
  int64_t slots_ = 0;
  std::vector<SampleTask> tasks_;
  std::vector<Progress> progress_;
};

}  // namespace headkit
