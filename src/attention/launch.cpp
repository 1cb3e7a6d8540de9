#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "attention/attention_problem.h"
#include "attention/cpu_pairs.h"
#include "attention/packed_weights.h"
#include "kernels/dispatch.h"
#include "operators/float32.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

using kernels::KernelTable;

// Rows that one output task multiplies, about: each panel of W_O comes from memory once for them.
constexpr int64_t kOutputRows = 192;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Sample {
  int64_t index = 0;
  int64_t first_pair = 0;
  int64_t num_pairs = 0;
  int64_t num_keys = 0;
  const int32_t* key_rows = nullptr;  // nullptr = the first num_keys tokens
  int64_t prepare_tasks = 1;
  int64_t output_tasks = 0;
};

enum class Stage : int8_t { kPrepare, kPair, kOutput };

struct Task {
  Stage stage;
  int32_t place;  // of the sample in the order of work
  int32_t item;
};

// What is left of a sample's stages. A task waits for counters of tasks before it in the queue and
// for nothing else; those have been taken by running threads, so waiting always ends.
struct Progress {
  std::atomic<int64_t> prepare{0}, pairs{0}, outputs{0};
};

void wait_for(const std::atomic<int64_t>& left) {
  while (left.load(std::memory_order_acquire) != 0) std::this_thread::yield();
}

class Launch {
 public:
  Launch(const AttentionProblem& problem, const PackedWeights& packed, at::Tensor& out)
      : table_(kernels::kernel_table()),
        packed_(packed),
        x_(in_float32(problem.x)),
        out_(out),
        batch_(x_.size(0)),
        length_(x_.size(1)),
        width_(x_.size(2)),
        head_dim_(problem.head_dim),
        panels_(ceil_div(length_, table_.panel)),
        output_panels_(std::max<int64_t>(1, kOutputRows / table_.panel)),
        scale_(static_cast<float>(problem.scale)),
        causal_(problem.is_causal),
        pairs_(problem),
        o_bias_(in_float32(problem.weights.o_bias)),
        dropped_(in_float32(problem.dropped_output)) {
    find_samples();
    plan_tasks();
  }

  void run() {
    thread_local Arena shared;
    tokens_ =
        shared.reserve(slots_ * (token_slot_ + key_slot_ + context_slot_) + batch_ * start_stride_);
    keys_ = tokens_ + slots_ * token_slot_;
    context_ = keys_ + slots_ * key_slot_;
    start_ = context_ + slots_ * context_slot_;
    run_queue(threads_, static_cast<int64_t>(tasks_.size()), scratch_floats_,
              [this](int64_t task, float* scratch) { run_task(tasks_[task], scratch); });
  }

 private:
  void find_samples() {
    const WorkList& list = pairs_.list;
    samples_.resize(batch_);
    for (int64_t b = 0; b < batch_; ++b) {
      Sample& sample = samples_[b];
      sample.index = b;
      sample.first_pair = list.row_offset[b];
      // Without a pair, all that is left is the start of the output.
      sample.num_pairs = list.row_offset[b + 1] - list.row_offset[b];
      sample.num_keys = pairs_.keys[b].count;
      sample.key_rows = pairs_.key_rows(b);
    }
    // Longest first, so that short samples fill the idle tail of the last threads. The order cannot
    // change a result: every task writes its own block.
    std::stable_sort(samples_.begin(), samples_.end(),
                     [this](const Sample& a, const Sample& b) { return cost(a) > cost(b); });
  }

  int64_t cost(const Sample& sample) const {
    return sample.num_pairs * (2 * length_ * width_ + sample.num_keys * (2 * width_ + 2 * length_));
  }

  void plan_tasks() {
    threads_ = queue_threads();
    const int64_t row_blocks = ceil_div(panels_, output_panels_);
    // One small batch on many threads: cut the columns of the output too.
    output_parts_ =
        threads_ == 1 ? 1 : std::clamp<int64_t>(2 * threads_ / (batch_ * row_blocks), 1, 16);
    int64_t most_pairs = 0, most_keys = 0, pairs = 0;
    bool holes = false;
    for (Sample& sample : samples_) {
      most_pairs = std::max(most_pairs, sample.num_pairs);
      pairs += sample.num_pairs;
      if (sample.num_pairs > 0) {
        most_keys = std::max(most_keys, sample.num_keys);
        holes = holes || sample.key_rows != nullptr;
        sample.prepare_tasks = panels_;
        if (sample.key_rows != nullptr) {
          sample.prepare_tasks += ceil_div(sample.num_keys, table_.panel);
        }
      }
      sample.output_tasks = row_blocks * output_parts_;
    }
    // The output of a sample waits until its pairs are done; with other pairs between, nobody
    // idles. Tokens and contexts live in a ring of slots, long enough for that delay.
    const int64_t delay =
        threads_ == 1 ? 0
                      : std::min(batch_, ceil_div(threads_ * batch_, std::max<int64_t>(1, pairs)));
    const int64_t ahead = threads_ == 1 ? 0 : 1;
    slots_ = std::min(batch_, delay + ahead + 1);
    token_slot_ = most_pairs > 0 ? panels_ * table_.panel * width_ : 0;
    key_slot_ = holes ? token_slot_ : 0;
    context_slot_ = panels_ * table_.panel * most_pairs * head_dim_;
    start_stride_ = ceil_div(width_, 16) * 16;
    scratch_floats_ =
        most_pairs > 0 ? table_.pair_scratch_floats(length_, most_keys, head_dim_) : 1;

    progress_ = std::vector<Progress>(batch_);
    for (int64_t place = 0; place < batch_; ++place) {
      progress_[place].prepare = samples_[place].prepare_tasks;
      progress_[place].pairs = samples_[place].num_pairs;
      progress_[place].outputs = samples_[place].output_tasks;
    }
    for (int64_t turn = -ahead; turn < batch_ + delay; ++turn) {
      push(Stage::kPrepare, turn + ahead);
      push(Stage::kPair, turn);
      push(Stage::kOutput, turn - delay);
    }
  }

  void push(Stage stage, int64_t place) {
    if (place < 0 || place >= batch_) return;
    const Sample& sample = samples_[place];
    const int64_t count = stage == Stage::kPrepare ? sample.prepare_tasks
                          : stage == Stage::kPair  ? sample.num_pairs
                                                   : sample.output_tasks;
    for (int64_t item = 0; item < count; ++item) {
      tasks_.push_back({stage, static_cast<int32_t>(place), static_cast<int32_t>(item)});
    }
  }

  void run_task(const Task& task, float* scratch) {
    Progress& now = progress_[task.place];
    const int64_t before = task.place - slots_;  // the sample that had the slot
    switch (task.stage) {
      case Stage::kPrepare:
        if (before >= 0) wait_for(progress_[before].pairs);
        prepare(task);
        now.prepare.fetch_sub(1, std::memory_order_release);
        break;
      case Stage::kPair:
        wait_for(now.prepare);
        if (before >= 0) wait_for(progress_[before].outputs);
        attend(task, scratch);
        now.pairs.fetch_sub(1, std::memory_order_release);
        break;
      case Stage::kOutput:
        wait_for(now.prepare);
        wait_for(now.pairs);
        project(task);
        now.outputs.fetch_sub(1, std::memory_order_release);
        break;
    }
  }

  float* tokens(int64_t place) const { return tokens_ + place % slots_ * token_slot_; }
  float* keys(int64_t place) const { return keys_ + place % slots_ * key_slot_; }
  float* context(int64_t place) const { return context_ + place % slots_ * context_slot_; }
  float* start(const Sample& sample) const { return start_ + sample.index * start_stride_; }

  void prepare(const Task& task) {
    const Sample& sample = samples_[task.place];
    if (task.item == 0) begin_output(sample);
    if (sample.num_pairs == 0) return;
    const bool of_keys = task.item >= panels_;
    const int64_t panel = of_keys ? task.item - panels_ : task.item;
    const int64_t first = panel * table_.panel;
    const float* x = x_.const_data_ptr<float>() + sample.index * length_ * width_;
    table_.pack_tokens(
        {.x = of_keys ? x : x + first * width_,
         .rows = of_keys ? sample.key_rows + first : nullptr,
         .panel = (of_keys ? keys(task.place) : tokens(task.place)) + first * width_,
         .row_stride = width_,
         .tokens = std::min(table_.panel, (of_keys ? sample.num_keys : length_) - first),
         .width = width_});
  }

  // Bias and what closed heads add: the first value of every row of the output.
  void begin_output(const Sample& sample) {
    float* row = start(sample);
    std::fill_n(row, start_stride_, 0.0f);
    if (o_bias_.defined()) std::copy_n(o_bias_.const_data_ptr<float>(), width_, row);
    if (!dropped_.defined()) return;
    const float* gate = pairs_.gate.const_data_ptr<float>() + sample.index * pairs_.list.heads;
    for (int64_t head = 0; head < pairs_.list.heads; ++head) {
      const float share = 1.0f - gate[head];
      if (share == 0.0f) continue;
      const float* dropped = dropped_.const_data_ptr<float>() + head * width_;
      for (int64_t d = 0; d < width_; ++d) row[d] += share * dropped[d];
    }
  }

  void attend(const Task& task, float* scratch) {
    const Sample& sample = samples_[task.place];
    const int64_t pair = sample.first_pair + task.item;
    const bool holes = sample.key_rows != nullptr;
    table_.attention_pair(
        {.tokens = tokens(task.place),
         .keys = holes ? keys(task.place) : tokens(task.place),
         .key_position = pairs_.key_position(sample.index),
         .head = packed_.data.get() + pairs_.list.head_index[pair] * packed_.head_floats,
         .context = context(task.place) + task.item * head_dim_ * table_.panel,
         .scratch = scratch,
         .num_tokens = length_,
         .num_keys = sample.num_keys,
         .width = width_,
         .head_dim = head_dim_,
         .context_stride = sample.num_pairs * head_dim_ * table_.panel,
         .scale = scale_,
         .gate = pairs_.list.scale[pair],
         .causal = causal_});
  }

  void project(const Task& task) {
    const Sample& sample = samples_[task.place];
    const int64_t first_panel = task.item / output_parts_ * output_panels_;
    const int64_t first = first_panel * table_.panel;
    const int64_t context_stride = sample.num_pairs * head_dim_ * table_.panel;
    table_.attention_output(
        {.context = context(task.place) + first_panel * context_stride,
         .packed = packed_.data.get(),
         .head_index = pairs_.list.head_index.data() + sample.first_pair,
         .start = start(sample),
         .out = out_.mutable_data_ptr<float>() + (sample.index * length_ + first) * width_,
         .num_heads = sample.num_pairs,
         .num_tokens = std::min(output_panels_ * table_.panel, length_ - first),
         .width = width_,
         .head_dim = head_dim_,
         .context_stride = context_stride,
         .part = task.item % output_parts_,
         .parts = output_parts_});
  }

  const KernelTable& table_;
  const PackedWeights& packed_;
  const at::Tensor x_;
  at::Tensor& out_;
  const int64_t batch_, length_, width_, head_dim_, panels_, output_panels_;
  const float scale_;
  const bool causal_;
  const CpuPairs pairs_;
  const at::Tensor o_bias_, dropped_;
  std::vector<Sample> samples_;
  std::vector<Task> tasks_;
  std::vector<Progress> progress_;
  int64_t threads_ = 1, output_parts_ = 1, slots_ = 0, start_stride_ = 0, scratch_floats_ = 0;
  int64_t token_slot_ = 0, key_slot_ = 0, context_slot_ = 0;
  float *tokens_ = nullptr, *keys_ = nullptr, *context_ = nullptr, *start_ = nullptr;
};

}  // namespace

std::string attention_cpu_refusal(const AttentionProblem& problem) {
  if (!problem.x.is_cpu()) return "x is on " + problem.x.device().str() + ", not on the CPU";
  if (problem.x.scalar_type() == at::kDouble) {
    return "the CPU kernels sum in float32, x is " + std::string(c10::toString(at::kDouble));
  }
  if (problem.gate.defined() && problem.gate.dim() == 3) {
    return "the CPU kernels take one gate for a head of a sample, not [B, T, H]";
  }
  if (problem.attn_bias.defined()) return "the CPU kernels take no attn_bias";
  if (problem.dropout_p > 0.0) return "the CPU kernels have no dropout";
  if (problem.keys_given()) return "the CPU kernels take no given keys and values";
  if (problem.kv.defined()) return "the CPU kernels have no cross attention";
  if (!problem.own_kv_heads()) return "the CPU kernels have no grouped queries";
  if (!problem.q_transform.empty() || !problem.k_transform.empty()) {
    return "the CPU kernels have no rotary embedding and no norms of queries and keys";
  }
  if (problem.window) return "the CPU kernels have no window";
  return "";
}

at::Tensor attention_cpu(const AttentionProblem& problem) {
  at::Tensor out = at::empty(problem.x.sizes(), problem.x.options().dtype(at::kFloat));
  if (out.numel() == 0) return out.to(problem.x.scalar_type());
  const auto packed = packed_weights(problem.weights, problem.heads, problem.head_dim);
  Launch(problem, *packed, out).run();
  return out.to(problem.x.scalar_type());
}

}  // namespace headkit
