#include "attention/bf16_launch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <vector>

#include "attention/cpu_pairs.h"
#include "attention/output_start.h"
#include "attention/packed_weights.h"
#include "attention/sample_queue.h"
#include "kernels/dispatch.h"
#include "operators/cache_sizes.h"
#include "operators/float32.h"
#include "operators/places.h"
#include "operators/rounding.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

using kernels::Bf16;
using kernels::Bf16Kernels;
using kernels::Bf16Pair;
using kernels::KernelTable;

constexpr double kLog2E = 1.4426950408889634;  // the kernels' exponentials are of base 2
constexpr PackedHeads::Operand kPairs = PackedHeads::Operand::kBf16Pair;

int64_t pairs_of(int64_t depth) { return ceil_div(depth, 2); }

const Bf16* data(const at::Tensor& x) {
  return reinterpret_cast<const Bf16*>(x.const_data_ptr<at::BFloat16>());
}

// Tokens of queries or keys of one sample, and the head that reads them.
struct Source {
  const Bf16Pair* tokens;  // token panels
  const float* angles;     // token panels of cosines, then of sines; nullptr = no rotary embedding
  int64_t count, width, head;
};

class Bf16Launch {
 public:
  Bf16Launch(const AttentionProblem& problem, at::Tensor& out)
      : table_(kernels::kernel_table()),
        kernels_(*table_.bf16),
        problem_(problem),
        x_(problem.x.contiguous()),
        source_(problem.kv.defined() ? problem.kv.contiguous() : x_),
        cosines_(in_float32(problem.q_transform.rotary_cos)),
        sines_(in_float32(problem.q_transform.rotary_sin)),
        q_norm_(in_float32(problem.q_transform.norm_weight)),
        k_norm_(in_float32(problem.k_transform.norm_weight)),
        out_(out),
        batch_(x_.size(0)),
        length_(x_.size(1)),
        width_(x_.size(2)),
        source_width_(source_.size(2)),
        head_dim_(problem.head_dim),
        row_(round_up(head_dim_, table_.vector_length)),
        rotary_dim_(cosines_.defined() ? cosines_.size(2) : 0),
        threads_(queue_threads()),
        panels_(ceil_div(length_, table_.panel)),
        output_panels_(std::max<int64_t>(1, kPassRows / table_.panel)),
        // A KV head that one pair alone reads is computed with it, while its tokens are near.
        fused_(problem.own_kv_heads()),
        pairs_(problem),
        start_(problem, pairs_),
        queries_(packed_query_heads(problem.weights, problem.heads, head_dim_, kPairs)),
        keys_values_(packed_key_value_heads(problem.weights, problem.kv_heads, head_dim_, kPairs)),
        outputs_(packed_output_heads(problem.weights, problem.heads, head_dim_, kPairs)) {
    for (const int32_t head : pairs_.list.head_index) {
      output_weights_.push_back(outputs_->pairs_at(head, 0));
    }
    plan();
  }

  void run() {
    thread_local Arena shared;
    workspace_ = shared.reserve(queue_->slots() * slot_.floats());
    queue_->run(scratch_.floats(), [this](const SampleTask& task, float* scratch) {
      switch (task.stage) {
        case Stage::kPrepare:
          return prepare(task);
        case Stage::kKeys:
          return project_keys_of(task, scratch);
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
  // KV heads that tasks of their own compute.
  int64_t num_kv(int64_t sample) const {
    return fused_ ? 0 : pairs_.kv.row_offset[sample + 1] - pairs_.kv.row_offset[sample];
  }
  int64_t num_keys(int64_t sample) const { return pairs_.keys[sample].count; }
  // Whether the tokens of a sample are its keys too.
  bool shares_tokens(int64_t sample) const {
    const CpuPairs::Keys& keys = pairs_.keys[sample];
    return !problem_.kv.defined() && keys.first == 0 && keys.rows.empty();
  }
  int64_t cost(int64_t sample) const {
    return num_pairs(sample) * length_ * (width_ + num_keys(sample)) +
           (fused_ ? num_pairs(sample) : num_kv(sample)) * num_keys(sample) * source_width_;
  }

  void plan() {
    order_.resize(batch_);
    std::iota(order_.begin(), order_.end(), 0);
    // Longest first, so that short samples fill the idle tail of the last threads. The order cannot
    // change a result: every task writes its own block.
    std::stable_sort(order_.begin(), order_.end(),
                     [this](int64_t a, int64_t b) { return cost(a) > cost(b); });
    const int64_t row_blocks = ceil_div(panels_, output_panels_);
    // One small batch on many threads: cut the columns of the output too.
    output_parts_ =
        threads_ == 1 ? 1 : std::clamp<int64_t>(2 * threads_ / (batch_ * row_blocks), 1, 16);
    int64_t most_pairs = 0, most_kv = 0, most_keys = 0;
    bool own_keys = false;
    std::vector<SampleTasks> counts;
    for (const int64_t sample : order_) {
      SampleTasks& tasks = counts.emplace_back();
      tasks.pairs = num_pairs(sample);
      tasks.outputs = row_blocks * output_parts_;
      if (tasks.pairs == 0) continue;  // all that is left is the start of the output
      tasks.keys = num_kv(sample);
      most_pairs = std::max(most_pairs, tasks.pairs);
      most_kv = std::max(most_kv, tasks.keys);
      most_keys = std::max(most_keys, num_keys(sample));
      tasks.prepare = panels_;
      if (shares_tokens(sample)) continue;
      own_keys = true;
      tasks.prepare += ceil_div(num_keys(sample), table_.panel);
    }
    queue_.emplace(std::move(counts), threads_);
    if (most_pairs > 0) place(most_pairs, most_kv, most_keys, own_keys);
  }

  // A pair is as long as a float.
  void place(int64_t most_pairs, int64_t most_kv, int64_t most_keys, bool own_keys) {
    const int64_t queries = panels_ * table_.panel, keys = round_up(most_keys, table_.panel);
    v_in_kv_ = round_up(keys * pairs_of(head_dim_), 16);
    kv_pairs_ = v_in_kv_ + round_up(pairs_of(keys) * row_, 16);
    tokens_ = slot_.place(queries * pairs_of(width_));
    angles_ = slot_.place(2 * queries * rotary_dim_);
    key_tokens_ = slot_.place(own_keys ? keys * pairs_of(source_width_) : 0);
    key_angles_ = slot_.place(own_keys ? 2 * keys * rotary_dim_ : 0);
    kv_ = slot_.place(most_kv * kv_pairs_);
    context_ = slot_.place(queries * most_pairs * pairs_of(head_dim_));
    q_ = scratch_.place(queries * pairs_of(head_dim_));
    own_kv_ = scratch_.place(fused_ ? kv_pairs_ : 0);
    const bool transforms = !problem_.q_transform.empty() || !problem_.k_transform.empty();
    wide_ = scratch_.place(transforms ? std::max(queries, keys) * head_dim_ : 0);
    attend_ = scratch_.place(kernels_.attend_scratch_floats(most_keys, head_dim_));
  }

  float* slot(int64_t place, int64_t offset) const {
    return workspace_ + place % queue_->slots() * slot_.floats() + offset;
  }
  Bf16Pair* slot_pairs(int64_t place, int64_t offset) const {
    return reinterpret_cast<Bf16Pair*>(slot(place, offset));
  }
  int64_t context_stride(int64_t sample) const {
    return num_pairs(sample) * pairs_of(head_dim_) * table_.panel;
  }

  void prepare(const SampleTask& task) {
    const int64_t sample = order_[task.place];
    if (task.item == 0) start_.write(sample);
    if (num_pairs(sample) == 0) return;
    const bool of_keys = task.item >= panels_;
    const int64_t first = (of_keys ? task.item - panels_ : task.item) * table_.panel;
    const CpuPairs::Keys& keys = pairs_.keys[sample];
    const int64_t total = of_keys ? keys.count : length_;
    const int64_t count = std::min(table_.panel, total - first);
    const int32_t* rows = of_keys && !keys.rows.empty() ? keys.rows.data() + first : nullptr;
    // Of the first token of the panel in its tensor.
    const int64_t row = rows != nullptr ? 0 : first + (of_keys ? keys.first : 0);
    const at::Tensor& from = of_keys ? source_ : x_;
    const int64_t width = from.size(2);
    kernels_.pack_tokens(
        {.x = data(from) + (sample * from.size(1) + row) * width,
         .rows = rows,
         .panel = slot_pairs(task.place, of_keys ? key_tokens_ : tokens_) + first * pairs_of(width),
         .row_stride = width,
         .tokens = count,
         .width = width});
    if (rotary_dim_ == 0) return;
    float* panel = slot(task.place, of_keys ? key_angles_ : angles_) + first * rotary_dim_;
    for (const at::Tensor& angles : {cosines_, sines_}) {
      const int64_t of_sample = angles.size(0) == 1 ? 0 : sample;
      table_.pack_tokens(
          {.x = angles.const_data_ptr<float>() + (of_sample * angles.size(1) + row) * rotary_dim_,
           .rows = rows,
           .panel = panel,
           .row_stride = rotary_dim_,
           .tokens = count,
           .width = rotary_dim_});
      panel += round_up(total, table_.panel) * rotary_dim_;
    }
  }

  Source query_source(int64_t place, int64_t head) const {
    return {.tokens = slot_pairs(place, tokens_),
            .angles = rotary_dim_ == 0 ? nullptr : slot(place, angles_),
            .count = length_,
            .width = width_,
            .head = head};
  }
  Source key_source(int64_t place, int64_t kv_head) const {
    const bool shared = shares_tokens(order_[place]);
    Source source = query_source(place, kv_head);
    if (!shared) {
      source.tokens = slot_pairs(place, key_tokens_);
      if (rotary_dim_ > 0) source.angles = slot(place, key_angles_);
      source.width = source_width_;
    }
    // Panels of angles lie as the tokens of the source, of which keys may be the first.
    source.count = num_keys(order_[place]);
    return source;
  }

  kernels::Bf16ProjectParams range(const Source& from, int64_t first, int64_t step) const {
    return {.tokens = from.tokens + first * pairs_of(from.width),
            .weights = nullptr,
            .bias = nullptr,
            .out = nullptr,
            .num_tokens = std::min(step, from.count - first),
            .width = from.width,
            .head_dim = head_dim_,
            .scale = 1.0f};
  }

  // One weight matrix at a time while the tokens fit into a second-level cache beside it, else one
  // token panel at a time through all of them.
  int64_t step_of(const Source& from) const {
    const bool cached = from.count * pairs_of(from.width) <= kCachedTokens;
    return cached ? std::max<int64_t>(1, from.count) : table_.panel;
  }

  void project_queries(const Source& from, int64_t first, int64_t step, float* wide,
                       Bf16Pair* q) const {
    auto params = range(from, first, step);
    params.weights = queries_->pairs_at(from.head, kQueryBlocks);
    params.bias = queries_->at(from.head, kQueryBias);
    params.out = q + first * pairs_of(head_dim_);
    if (problem_.q_transform.empty()) {
      params.scale = static_cast<float>(problem_.scale * kLog2E);
    } else {
      params.wide = wide + first * head_dim_;
    }
    kernels_.project_panels(params);
  }

  void project_keys(const Source& from, int64_t first, int64_t step, float* wide,
                    Bf16Pair* kv) const {
    auto params = range(from, first, step);
    params.weights = keys_values_->pairs_at(from.head, kKeyBlocks);
    params.bias = keys_values_->at(from.head, kKeyBias);
    params.out = kv + first * pairs_of(head_dim_);
    if (!problem_.k_transform.empty()) params.wide = wide + first * head_dim_;
    kernels_.project_panels(params);
    params = range(from, first, step);
    params.weights = keys_values_->pairs_at(from.head, kValuePanels);
    params.bias = keys_values_->at(from.head, kValueBias);
    params.out = kv + v_in_kv_ + first / 2 * row_;
    kernels_.project_rows(params);
  }

  // Norm and rotary embedding of float32 panels, and the only rounding.
  void transform(const HeadTransform& how, const at::Tensor& norm, const Source& from,
                 int64_t angle_tokens, double scale, float* wide, Bf16Pair* out) const {
    if (how.empty()) return;
    const int64_t sines = round_up(angle_tokens, table_.panel) * rotary_dim_;
    table_.transform({.panels = wide,
                      .norm_weight = norm.defined() ? norm.const_data_ptr<float>() : nullptr,
                      .cosines = from.angles,
                      .sines = from.angles == nullptr ? nullptr : from.angles + sines,
                      .num_tokens = from.count,
                      .head_dim = head_dim_,
                      .rotary_dim = rotary_dim_,
                      .norm_eps = static_cast<float>(how.norm_eps),
                      .scale = static_cast<float>(scale)});
    kernels_.round_panels(
        {.panels = wide, .out = out, .num_tokens = from.count, .head_dim = head_dim_});
  }
  void transform_queries(const Source& from, float* wide, Bf16Pair* q) const {
    transform(problem_.q_transform, q_norm_, from, length_, problem_.scale * kLog2E, wide, q);
  }
  void transform_keys(const Source& from, int64_t sample, float* wide, Bf16Pair* k) const {
    const int64_t angle_tokens = shares_tokens(sample) ? length_ : from.count;
    transform(problem_.k_transform, k_norm_, from, angle_tokens, 1.0, wide, k);
  }

  void project_keys_of(const SampleTask& task, float* scratch) const {
    const int64_t sample = order_[task.place];
    const int32_t kv_head = pairs_.kv.head_index[pairs_.kv.row_offset[sample] + task.item];
    Bf16Pair* kv = slot_pairs(task.place, kv_ + task.item * kv_pairs_);
    const Source keys = key_source(task.place, kv_head);
    const int64_t step = step_of(keys);
    for (int64_t first = 0; first < keys.count; first += step) {
      project_keys(keys, first, step, scratch + wide_, kv);
    }
    transform_keys(keys, sample, scratch + wide_, kv);
  }

  // Keys and values of a KV head that has had its own task.
  const Bf16Pair* shared_keys(int64_t place, int64_t head) const {
    const int64_t sample = order_[place];
    const int64_t item = pairs_.kv_entry(sample, head) - pairs_.kv.row_offset[sample];
    return slot_pairs(place, kv_ + item * kv_pairs_);
  }

  void attend(const SampleTask& task, float* scratch) const {
    const int64_t sample = order_[task.place];
    const int64_t pair = pairs_.list.row_offset[sample] + task.item;
    const int64_t head = pairs_.list.head_index[pair];
    Bf16Pair* q = reinterpret_cast<Bf16Pair*>(scratch + q_);
    float* wide = scratch + wide_;
    const Bf16Pair* kv =
        fused_ ? reinterpret_cast<Bf16Pair*>(scratch + own_kv_) : shared_keys(task.place, head);
    if (fused_) {
      project_fused(task.place, head, wide, q, reinterpret_cast<Bf16Pair*>(scratch + own_kv_));
    } else {
      const Source queries = query_source(task.place, head);
      const int64_t step = step_of(queries);
      for (int64_t first = 0; first < length_; first += step) {
        project_queries(queries, first, step, wide, q);
      }
      transform_queries(queries, wide, q);
    }
    kernels_.attend({.q = q,
                     .k = kv,
                     .v = kv + v_in_kv_,
                     .key_position = pairs_.key_position(sample),
                     .context = slot_pairs(task.place, context_) +
                                task.item * pairs_of(head_dim_) * table_.panel,
                     .scratch = scratch + attend_,
                     .num_tokens = length_,
                     .num_keys = num_keys(sample),
                     .head_dim = head_dim_,
                     .context_stride = context_stride(sample),
                     .gate = pairs_.list.scale[pair],
                     .causal = problem_.is_causal});
  }

  // Queries, keys and values of one pair.
  void project_fused(int64_t place, int64_t head, float* wide, Bf16Pair* q, Bf16Pair* kv) const {
    const Source queries = query_source(place, head), keys = key_source(place, head);
    const bool together = shares_tokens(order_[place]) && problem_.q_transform.empty() &&
                          problem_.k_transform.empty();
    const int64_t step = step_of(queries), key_step = step_of(keys);
    for (int64_t first = 0; first < length_; first += step) {
      project_queries(queries, first, step, wide, q);
      if (together && first < keys.count) project_keys(keys, first, step, wide, kv);
    }
    transform_queries(queries, wide, q);
    if (together) return;
    for (int64_t first = 0; first < keys.count; first += key_step) {
      project_keys(keys, first, key_step, wide, kv);
    }
    transform_keys(keys, order_[place], wide, kv);
  }

  void sum_heads(const SampleTask& task) {
    const int64_t sample = order_[task.place];
    const int64_t first_panel = task.item / output_parts_ * output_panels_;
    const int64_t first = first_panel * table_.panel;
    kernels_.sum_projections(
        {.context = slot_pairs(task.place, context_) + first_panel * context_stride(sample),
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

  const KernelTable& table_;
  const Bf16Kernels& kernels_;
  const AttentionProblem& problem_;
  const at::Tensor x_, source_, cosines_, sines_, q_norm_, k_norm_;
  at::Tensor& out_;
  const int64_t batch_, length_, width_, source_width_, head_dim_, row_, rotary_dim_, threads_,
      panels_, output_panels_;
  const bool fused_;
  const CpuPairs pairs_;
  OutputStart start_;
  const std::shared_ptr<const PackedHeads> queries_, keys_values_, outputs_;
  std::vector<const Bf16Pair*> output_weights_;  // of each pair
  std::vector<int64_t> order_;                   // samples in the order of work
  std::optional<SampleQueue> queue_;
  int64_t output_parts_ = 1;
  // What a sample has, and what a pair has.
  int64_t tokens_ = 0, angles_ = 0, key_tokens_ = 0, key_angles_ = 0, kv_ = 0, context_ = 0;
  int64_t q_ = 0, own_kv_ = 0, wide_ = 0, attend_ = 0;
  Places slot_, scratch_;
  int64_t v_in_kv_ = 0, kv_pairs_ = 0;  // values behind the keys of one head, and both
  float* workspace_ = nullptr;
};

}  // namespace

bool runs_in_bf16(const AttentionProblem& problem) {
  return problem.x.scalar_type() == at::kBFloat16 && kernels::kernel_table().bf16 != nullptr &&
         !problem.keys_given() && !problem.attn_bias.defined() && !problem.window &&
         problem.query_offset == 0;
}

at::Tensor attention_bf16(const AttentionProblem& problem) {
  at::Tensor out = at::empty(problem.x.sizes(), problem.x.options());
  if (out.numel() > 0) Bf16Launch(problem, out).run();
  return out;
}

}  // namespace headkit
