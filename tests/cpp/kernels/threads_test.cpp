// The kernels under the queue of a launch, with threads of its own instead of torch's: what the
// thread sanitizer can see through.
#include <atomic>
#include <thread>

#include "attention/sample_queue.h"
#include "cpp/kernels/kernel_problem.h"
#include "operators/task_queue.h"

namespace headkit {

void run_queue(int64_t threads, int64_t tasks, int64_t scratch_floats,
               const std::function<void(int64_t, float*)>& run) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> pool;
  for (int64_t i = 0; i < threads; ++i) {
    pool.emplace_back([&] {
      kernels::Floats scratch(scratch_floats);
      for (int64_t task = next++; task < tasks; task = next++) run(task, scratch.data());
    });
  }
  for (std::thread& thread : pool) thread.join();
}

namespace kernels {
namespace {

// The workspace of one slot of the ring.
struct Slot {
  Floats tokens, keys, k, v, context;
};

// Samples of one layer, each with heads and lengths of its own; head 0 and 1 share keys and values.
class Layer {
 public:
  Layer(const KernelTable& table, int64_t samples) : table_(table), weights_(problem(0)) {
    packed_ = pack_heads(table, weights_);
    for (int64_t b = 0; b < samples; ++b) {
      samples_.push_back(problem(b));
      out_.emplace_back(samples_.back().tokens * weights_.width);
      start_.emplace_back(weights_.width + table.vector_length, 0.5f);
    }
  }

  std::vector<Floats> run(int64_t threads) {
    std::vector<SampleTasks> tasks;
    for (const Problem& p : samples_) {
      const int64_t pairs = static_cast<int64_t>(p.open.size());
      tasks.push_back({.prepare = 2, .keys = pairs > 0, .pairs = pairs, .outputs = 3});
    }
    SampleQueue queue(tasks, threads);
    std::vector<Slot> slots;
    for (int64_t i = 0; i < queue.slots(); ++i) {
      const int64_t wide = panel_floats(table_, kLongest, weights_.width);
      const int64_t narrow = panel_floats(table_, kLongest, weights_.head_dim);
      slots.push_back({Floats(wide), Floats(wide), Floats(narrow),
                       Floats(kLongest * row_floats(table_, weights_.head_dim)),
                       Floats(narrow * weights_.heads)});
    }
    const int64_t q_floats = panel_floats(table_, kLongest, weights_.head_dim);
    queue.run(q_floats + table_.attend_scratch_floats(kLongest),
              [&](const SampleTask& task, float* scratch) {
                run_task(task, slots[task.place % queue.slots()], scratch, q_floats);
              });
    return std::move(out_);
  }

 private:
  static constexpr int64_t kLongest = 70;

  Problem problem(int64_t sample) const {
    Problem p{.tokens = kLongest - 7 * (sample % 5), .width = 24, .heads = 3, .head_dim = 8};
    for (int32_t head = 0; head < 3; ++head) {
      if ((sample + head) % 3 != 0) p.open.push_back(head);
    }
    p.fill(40);
    if (sample % 4 == 3) p.open.clear(), p.gates.clear();
    return p;
  }

  ProjectParams project(const float* tokens, const Floats& weights, const Floats& bias, float* out,
                        int64_t count) const {
    return {.tokens = tokens,
            .weights = weights.data(),
            .bias = bias.data(),
            .out = out,
            .num_tokens = count,
            .width = weights_.width,
            .head_dim = weights_.head_dim,
            .scale = 1.0f};
  }

  void run_task(const SampleTask& task, Slot& slot, float* scratch, int64_t q_floats) {
    const Problem& p = samples_[task.place];
    const int64_t stride = static_cast<int64_t>(p.open.size()) * p.head_dim * table_.panel;
    if (task.stage == Stage::kPrepare) {
      Floats& to = task.item == 0 ? slot.tokens : slot.keys;
      for (int64_t first = 0; first < p.tokens; first += table_.panel) {
        table_.pack_tokens({.x = p.x.data() + first * p.width,
                            .rows = nullptr,
                            .panel = to.data() + first * p.width,
                            .row_stride = p.width,
                            .tokens = std::min(table_.panel, p.tokens - first),
                            .width = p.width});
      }
    } else if (task.stage == Stage::kKeys) {
      const float* keys = slot.keys.data();
      table_.project_panels(
          project(keys, packed_.k[0], packed_.k_bias[0], slot.k.data(), p.tokens));
      table_.project_rows(project(keys, packed_.v[0], packed_.v_bias[0], slot.v.data(), p.tokens));
    } else if (task.stage == Stage::kPair) {
      const int64_t head = p.open[task.item];
      table_.project_panels(
          project(slot.tokens.data(), packed_.q[head], packed_.q_bias[head], scratch, p.tokens));
      table_.attend({.q = scratch,
                     .k = slot.k.data(),
                     .v = slot.v.data(),
                     .context = slot.context.data() + task.item * p.head_dim * table_.panel,
                     .own_context = nullptr,
                     .softmax = nullptr,
                     .scratch = scratch + q_floats,
                     .scores = p.scores(),
                     .num_tokens = p.tokens,
                     .num_keys = p.tokens,
                     .head_dim = p.head_dim,
                     .v_stride = row_floats(table_, p.head_dim),
                     .context_stride = stride,
                     .gate = 1.0f});
    } else {
      std::vector<const float*> weights;
      for (const int32_t head : p.open) weights.push_back(packed_.o[head].data());
      table_.sum_projections({.context = slot.context.data(),
                              .weights = weights.data(),
                              .start = start_[task.place].data(),
                              .out = out_[task.place].data(),
                              .num_segments = static_cast<int64_t>(p.open.size()),
                              .num_tokens = p.tokens,
                              .width = p.width,
                              .head_dim = p.head_dim,
                              .context_stride = stride,
                              .part = task.item,
                              .parts = 3});
    }
  }

  const KernelTable& table_;
  const Problem weights_;
  PackedLayer packed_;
  std::vector<Problem> samples_;
  std::vector<Floats> out_, start_;
};

class ThreadsTest : public LevelTest {
 protected:
  void expect_same(const std::vector<Floats>& found, const std::vector<Floats>& expected) {
    ASSERT_EQ(found.size(), expected.size());
    for (size_t b = 0; b < found.size(); ++b) {
      for (int64_t i = 0; i < found[b].size(); ++i) ASSERT_EQ(found[b][i], expected[b][i]);
    }
  }
};

TEST_P(ThreadsTest, AnyNumberOfThreadsGivesTheSameBits) {
  const std::vector<Floats> expected = Layer(table(), 23).run(1);
  for (const int64_t threads : {2, 3, 8}) expect_same(Layer(table(), 23).run(threads), expected);
}

TEST_P(ThreadsTest, LaunchesMayRunBesideEachOther) {
  const std::vector<Floats> expected = Layer(table(), 9).run(1);
  std::vector<std::vector<Floats>> found(4);
  std::vector<std::thread> callers;
  for (auto& result : found) {
    callers.emplace_back([&] { result = Layer(table(), 9).run(2); });
  }
  for (std::thread& caller : callers) caller.join();
  for (const auto& result : found) expect_same(result, expected);
}

INSTANTIATE_TEST_SUITE_P(Levels, ThreadsTest, every_level(), level_name);

}  // namespace
}  // namespace kernels
}  // namespace headkit
