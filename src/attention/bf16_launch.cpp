#include "attention/bf16_launch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "attention/cpu_pairs.h"
#include "attention/output_start.h"
#include "attention/packed_weights.h"
#include "attention/sample_queue.h"
#include "kernels/dispatch.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

using kernels::Bf16;
using kernels::Bf16Kernels;
using kernels::Bf16Pair;
using kernels::KernelTable;

// Rows that one output task multiplies, about: each panel of W_O comes from memory once for them.
constexpr int64_t kOutputRows = 192;
// Pairs of token panels that stay in a second-level cache beside one weight matrix of a head.
constexpr int64_t kCachedTokens = 160 * 1024;
constexpr double kLog2E = 1.4426950408889634;  // the kernels' exponentials are of base 2

constexpr PackedHeads::Operand kPairs = PackedHeads::Operand::kBf16Pair;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
int64_t pairs_of(int64_t depth) { return ceil_div(depth, 2); }

class Bf16Launch {
 public:
  Bf16Launch(const AttentionProblem& problem, at::Tensor& out)
      : table_(kernels::kernel_table()),
        kernels_(*table_.bf16),
        x_(problem.x.contiguous()),
        out_(out),
        batch_(x_.size(0)),
        length_(x_.size(1)),
        width_(x_.size(2)),
        head_dim_(problem.head_dim),
        scale_(static_cast<float>(problem.scale * kLog2E)),
        causal_(problem.is_causal),
        panels_(ceil_div(length_, table_.panel)),
        output_panels_(std::max<int64_t>(1, kOutputRows / table_.panel)),
        pairs_(problem),
        start_(problem, pairs_),
        queries_(packed_query_heads(problem.weights, problem.heads, head_dim_, kPairs)),
        keys_values_(packed_key_value_heads(problem.weights, problem.heads, head_dim_, kPairs)),
        outputs_(packed_output_heads(problem.weights, problem.heads, head_dim_, kPairs)) {
    for (const int32_t head : pairs_.list.head_index) {
      output_weights_.push_back(outputs_->pairs_at(head, 0));
    }
    plan();
  }

  void run() {
    thread_local Arena shared;
    workspace_ = reinterpret_cast<Bf16Pair*>(shared.reserve(queue_->slots() * slot_pairs_));
    queue_->run(scratch_floats_, [this](const SampleTask& task, float* scratch) {
      switch (task.stage) {
        case Stage::kPrepare:
          return prepare(task);
        case Stage::kKeys:
          return;
        case Stage::kPair:
          return attend(task, scratch);
        case Stage::kOutput:
          return sum_heads(task);
      }
    });
  }

 private:
  int64_t num_pairs(int64_t sample) const {
    return pairs_.list.row_offset[sample + 1] - pairs_.list.row_offset[sample];
  }
  int64_t num_keys(int64_t sample) const { return pairs_.keys[sample].count; }
  // Whether the tokens of a sample are its keys too.
  bool shares_tokens(int64_t sample) const {
    return pairs_.keys[sample].first == 0 && pairs_.keys[sample].rows.empty();
  }

  void plan() {
    order_.resize(batch_);
    for (int64_t b = 0; b < batch_; ++b) order_[b] = b;
    // Longest first, so that short samples fill the idle tail of the last threads. The order cannot
    // change a result: every task writes its own block.
    std::stable_sort(order_.begin(), order_.end(), [this](int64_t a, int64_t b) {
      return num_pairs(a) * (width_ * length_ + (width_ + length_) * num_keys(a)) >
             num_pairs(b) * (width_ * length_ + (width_ + length_) * num_keys(b));
    });
    const int64_t threads = queue_threads();
    const int64_t row_blocks = ceil_div(panels_, output_panels_);
    // One small batch on many threads: cut the columns of the output too.
    output_parts_ =
        threads == 1 ? 1 : std::clamp<int64_t>(2 * threads / (batch_ * row_blocks), 1, 16);
    int64_t most_pairs = 0, most_keys = 0;
    bool own_keys = false;
    std::vector<SampleTasks> counts;
    for (const int64_t sample : order_) {
      SampleTasks& tasks = counts.emplace_back();
      tasks.pairs = num_pairs(sample);
      tasks.outputs = row_blocks * output_parts_;
      if (tasks.pairs == 0) continue;  // all that is left is the start of the output
      most_pairs = std::max(most_pairs, tasks.pairs);
      most_keys = std::max(most_keys, num_keys(sample));
      tasks.prepare = panels_;
      if (shares_tokens(sample)) continue;
      own_keys = true;
      tasks.prepare += ceil_div(num_keys(sample), table_.panel);
    }
    queue_.emplace(std::move(counts), threads);

    const int64_t queries = panels_ * table_.panel, keys = round_up(most_keys, table_.panel);
    key_tokens_ = most_pairs > 0 ? round_up(queries * pairs_of(width_), 16) : 0;
    context_ = key_tokens_ + (own_keys ? round_up(keys * pairs_of(width_), 16) : 0);
    slot_pairs_ = context_ + round_up(queries * most_pairs * pairs_of(head_dim_), 16);
    if (most_pairs == 0) return;
    row_ = round_up(head_dim_, table_.vector_length);
    k_ = round_up(queries * pairs_of(head_dim_), 16);
    v_ = k_ + round_up(keys * pairs_of(head_dim_), 16);
    attend_ = v_ + round_up(pairs_of(keys) * row_, 16);
    scratch_floats_ = attend_ + kernels_.attend_scratch_floats(most_keys, head_dim_);
  }

  Bf16Pair* tokens(int64_t place) const {
    return workspace_ + place % queue_->slots() * slot_pairs_;
  }
  Bf16Pair* keys(int64_t place) const {
    return tokens(place) + (shares_tokens(order_[place]) ? 0 : key_tokens_);
  }
  Bf16Pair* context(int64_t place) const { return tokens(place) + context_; }
  int64_t context_stride(int64_t sample) const {
    return num_pairs(sample) * pairs_of(head_dim_) * table_.panel;
  }

  void prepare(const SampleTask& task) {
    const int64_t sample = order_[task.place];
    if (task.item == 0) start_.write(sample);
    if (num_pairs(sample) == 0) return;
    const bool of_keys = task.item >= panels_;
    const int64_t first = (of_keys ? task.item - panels_ : task.item) * table_.panel;
    const CpuPairs::Keys& keys_of = pairs_.keys[sample];
    const bool holes = of_keys && !keys_of.rows.empty();
    const int64_t row = holes ? 0 : first + (of_keys ? keys_of.first : 0);
    kernels_.pack_tokens(
        {.x = x() + (sample * length_ + row) * width_,
         .rows = holes ? keys_of.rows.data() + first : nullptr,
         .panel = (of_keys ? keys(task.place) : tokens(task.place)) + first * pairs_of(width_),
         .row_stride = width_,
         .tokens = std::min(table_.panel, (of_keys ? keys_of.count : length_) - first),
         .width = width_});
  }

  void attend(const SampleTask& task, float* scratch) const {
    const int64_t sample = order_[task.place];
    const int64_t pair = pairs_.list.row_offset[sample] + task.item;
    const int64_t head = pairs_.list.head_index[pair];
    Bf16Pair* q = reinterpret_cast<Bf16Pair*>(scratch);
    project(task.place, head, q);
    kernels_.attend(
        {.q = q,
         .k = q + k_,
         .v = q + v_,
         .key_position = pairs_.key_position(sample),
         .context = context(task.place) + task.item * pairs_of(head_dim_) * table_.panel,
         .scratch = scratch + attend_,
         .num_tokens = length_,
         .num_keys = num_keys(sample),
         .head_dim = head_dim_,
         .context_stride = context_stride(sample),
         .gate = pairs_.list.scale[pair],
         .causal = causal_});
  }

  // One weight matrix at a time while the tokens fit into a second-level cache beside it, else one
  // token panel at a time through all of them.
  void project(int64_t place, int64_t head, Bf16Pair* q) const {
    const int64_t keys_of = num_keys(order_[place]), depth = pairs_of(width_);
    const int64_t step = length_ * depth <= kCachedTokens ? length_ : table_.panel;
    const auto range = [&](const Bf16Pair* from, int64_t first, int64_t total, int64_t out_row,
                           Bf16Pair* out) {
      return kernels::Bf16ProjectParams{.tokens = from + first * depth,
                                        .weights = nullptr,
                                        .bias = nullptr,
                                        .out = out + first * out_row,
                                        .num_tokens = std::min(step, total - first),
                                        .width = width_,
                                        .head_dim = head_dim_,
                                        .scale = 1.0f};
    };
    for (int64_t first = 0; first < length_; first += step) {
      auto params = range(tokens(place), first, length_, pairs_of(head_dim_), q);
      params.weights = queries_->pairs_at(head, kQueryBlocks);
      params.bias = queries_->at(head, kQueryBias);
      params.scale = scale_;
      kernels_.project_panels(params);
      if (first >= keys_of) continue;
      params = range(keys(place), first, keys_of, pairs_of(head_dim_), q + k_);
      params.weights = keys_values_->pairs_at(head, kKeyBlocks);
      params.bias = keys_values_->at(head, kKeyBias);
      kernels_.project_panels(params);
      params = range(keys(place), first, keys_of, 0, q + v_ + first / 2 * row_);
      params.weights = keys_values_->pairs_at(head, kValuePanels);
      params.bias = keys_values_->at(head, kValueBias);
      kernels_.project_rows(params);
    }
  }

  void sum_heads(const SampleTask& task) {
    const int64_t sample = order_[task.place];
    const int64_t first_panel = task.item / output_parts_ * output_panels_;
    const int64_t first = first_panel * table_.panel;
    kernels_.sum_projections(
        {.context = context(task.place) + first_panel * context_stride(sample),
         .weights = output_weights_.data() + pairs_.list.row_offset[sample],
         .start = start_.row(sample),
         .out = reinterpret_cast<Bf16*>(out_.mutable_data_ptr<at::BFloat16>()) +
                (sample * length_ + first) * width_,
         .num_segments = num_pairs(sample),
         .num_tokens = std::min(output_panels_ * table_.panel, length_ - first),
         .width = width_,
         .head_dim = head_dim_,
         .context_stride = context_stride(sample),
         .part = task.item % output_parts_,
         .parts = output_parts_});
  }

  const Bf16* x() const { return reinterpret_cast<const Bf16*>(x_.const_data_ptr<at::BFloat16>()); }

  const KernelTable& table_;
  const Bf16Kernels& kernels_;
  const at::Tensor x_;
  at::Tensor& out_;
  const int64_t batch_, length_, width_, head_dim_;
  const float scale_;
  const bool causal_;
  const int64_t panels_, output_panels_;
  const CpuPairs pairs_;
  OutputStart start_;
  const std::shared_ptr<const PackedHeads> queries_, keys_values_, outputs_;
  std::vector<const Bf16Pair*> output_weights_;  // of each pair
  std::vector<int64_t> order_;                   // samples in the order of work
  std::optional<SampleQueue> queue_;
  int64_t output_parts_ = 1;
  int64_t key_tokens_ = 0, context_ = 0, slot_pairs_ = 0;    // behind the tokens of a slot
  int64_t k_ = 0, v_ = 0, attend_ = 0, scratch_floats_ = 0;  // behind q in the scratch of a pair
  int64_t row_ = 0;
  Bf16Pair* workspace_ = nullptr;
};

}  // namespace

bool runs_in_bf16(const AttentionProblem& problem) {
  return problem.x.scalar_type() == at::kBFloat16 && kernels::kernel_table().bf16 != nullptr &&
         !problem.kv.defined() && !problem.keys_given() && problem.own_kv_heads() &&
         !problem.attn_bias.defined() && !problem.window && problem.query_offset == 0 &&
         problem.q_transform.empty() && problem.k_transform.empty();
}

at::Tensor attention_bf16(const AttentionProblem& problem) {
  at::Tensor out = at::empty(problem.x.sizes(), problem.x.options());
  if (out.numel() > 0) Bf16Launch(problem, out).run();
  return out;
}

}  // namespace headkit
