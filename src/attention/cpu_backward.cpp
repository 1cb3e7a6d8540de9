#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "attention/bias_sum.h"
#include "attention/composite_backward.h"
#include "attention/cpu_pairs.h"
#include "attention/given_rows.h"
#include "attention/head_rows.h"
#include "attention/input_weight.h"
#include "attention/packed_weights.h"
#include "attention/saved_pairs.h"
#include "kernels/dispatch.h"
#include "operators/cache_sizes.h"
#include "operators/float32.h"
#include "operators/outer_sums.h"
#include "operators/places.h"
#include "operators/rounding.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

using kernels::KernelTable;

// Floats of the workspace of one group of samples, unless a single sample needs more. A group sees
// the weights' gradients once.
constexpr int64_t kGroupFloats = int64_t{1} << 24;
// Cuts of one weight's gradient, so that few heads keep many threads busy.
constexpr int64_t kWeightParts = 4;

enum Matrix : int { kMatrixQ, kMatrixK, kMatrixV, kMatrixO, kMatrices };

// Whether anything is asked for that the gradients of the scores or of the values lead to.
bool asks_for_scores(const GradientMask& mask) {
  for (const Differentiable i : {kX, kKv, kK, kV, kQWeight, kKWeight, kVWeight, kQBias, kKBias,
                                 kVBias, kAttnBias, kQNormWeight, kKNormWeight}) {
    if (mask[i]) return true;
  }
  return false;
}

// The stages are queues of their own: pairs, then what sums over them. A task computes the pairs of
// one KV head of one sample. Every sum runs over its pairs in a fixed order, so neither threads nor
// their number show in a result; the groups of samples are a matter of the problem alone.
class BackwardLaunch {
 public:
  BackwardLaunch(const AttentionProblem& problem, const SavedPairs& saved, const at::Tensor& grad,
                 const GradientMask& mask)
      : table_(kernels::kernel_table()),
        problem_(problem),
        saved_(saved),
        pairs_(problem),
        list_(pairs_.list),
        kv_(pairs_.kv),
        x_(in_float32(problem.x)),
        source_(problem.kv.defined() ? in_float32(problem.kv) : x_),
        grad_(in_float32(grad)),
        cosines_(in_float32(problem.q_transform.rotary_cos)),
        sines_(in_float32(problem.q_transform.rotary_sin)),
        q_norm_(in_float32(problem.q_transform.norm_weight)),
        k_norm_(in_float32(problem.k_transform.norm_weight)),
        batch_(x_.size(0)),
        length_(x_.size(1)),
        source_length_(problem.num_keys),
        width_(x_.size(2)),
        heads_(problem.heads),
        kv_heads_(problem.kv_heads),
        head_dim_(problem.head_dim),
        panels_(ceil_div(length_, table_.panel)),
        source_panels_(ceil_div(source_length_, table_.panel)),
        row_(round_up(head_dim_, table_.vector_length)),
        rotary_dim_(cosines_.defined() ? cosines_.size(2) : 0),
        threads_(queue_threads()),
        self_(!problem.keys_given() && !problem.kv.defined()),
        of_scores_(asks_for_scores(mask)) {
    const auto room = [&](bool wanted, at::IntArrayRef shape) {
      return wanted ? at::empty(shape, x_.options()) : at::Tensor();
    };
    const auto zeros = [&](bool wanted, at::IntArrayRef shape) {
      return wanted ? at::zeros(shape, x_.options()) : at::Tensor();
    };
    const int64_t inner = heads_ * head_dim_, kv_inner = kv_heads_ * head_dim_;
    const int64_t key_width = source_.size(2);
    gradients_[kX] = room(mask[kX], x_.sizes());
    gradients_[kKv] = room(mask[kKv], source_.sizes());
    weight_[kMatrixQ] = room(mask[kQWeight] || mask[kQBias], {inner, width_});
    weight_[kMatrixK] = room(mask[kKWeight] || mask[kKBias], {kv_inner, key_width});
    weight_[kMatrixV] = room(mask[kVWeight] || mask[kVBias], {kv_inner, key_width});
    weight_[kMatrixO] = room(mask[kOWeight], {width_, inner});
    bias_[kMatrixQ] = room(mask[kQBias], {inner});
    bias_[kMatrixK] = room(mask[kKBias], {kv_inner});
    bias_[kMatrixV] = room(mask[kVBias], {kv_inner});
    const Differentiable weights[] = {kQWeight, kKWeight, kVWeight, kOWeight};
    const Differentiable biases[] = {kQBias, kKBias, kVBias};
    for (int m = 0; m < kMatrices; ++m) {
      if (mask[weights[m]]) gradients_[weights[m]] = weight_[m];
      if (m != kMatrixO) gradients_[biases[m]] = bias_[m];
    }
    if (problem.keys_given()) {
      k_ = GivenRows(in_float32(problem.k));
      v_ = GivenRows(in_float32(problem.v));
      const bool of_keys = mask[kK] || mask[kV];
      gradients_[kK] = zeros(of_keys, problem.k.sizes());
      gradients_[kV] = zeros(of_keys, problem.v.sizes());
    }
    if (mask[kAttnBias]) bias_sum_ = std::make_unique<BiasSum>(problem.attn_bias, list_);
    const int64_t lanes = head_dim_ * table_.vector_length;
    q_norm_sums_ = zeros(of_scores_ && q_norm_.defined(), {list_.pairs(), lanes});
    k_norm_sums_ = zeros(of_scores_ && k_norm_.defined(), {kv_.pairs(), lanes});
    of_pairs_ = at::zeros({batch_, heads_}, x_.options());
    clear_idle_heads();
  }

  void run() {
    pack_weights();
    find_tasks();
    for (int64_t first = 0; first < batch_;) {
      int64_t end = first, floats = 0;
      for (; end < batch_ && (end == first || floats + sample_floats(end) <= kGroupFloats); ++end) {
        floats += sample_floats(end);
      }
      run_group(first, end);
      first = end;
    }
    if (bias_sum_ != nullptr) gradients_[kAttnBias] = bias_sum_->sum();
    gradients_[kQNormWeight] = norm_gradient(q_norm_sums_);
    gradients_[kKNormWeight] = norm_gradient(k_norm_sums_);
  }

  /// <dOut W_O, context> of each pair, [B, H].
  const at::Tensor& of_pairs() const { return of_pairs_; }
  const DifferentiableTensors& gradients() const { return gradients_; }

 private:
  static int64_t in_sample(const WorkList& list, int64_t sample) {
    return list.row_offset[sample + 1] - list.row_offset[sample];
  }
  int64_t pairs_of(int64_t sample) const { return in_sample(list_, sample); }
  int64_t kv_of(int64_t sample) const { return in_sample(kv_, sample); }

  // Floats from one token panel of a sample's gradients to the next: those of queries, in
  // self-attention those of keys and values behind them, else those are apart.
  int64_t query_stride(int64_t sample) const {
    return (pairs_of(sample) + (self_ ? 2 * kv_of(sample) : 0)) * head_dim_ * table_.panel;
  }
  int64_t key_stride(int64_t sample) const {
    return self_ ? query_stride(sample) : 2 * kv_of(sample) * head_dim_ * table_.panel;
  }
  int64_t grad_floats() const { return panels_ * table_.panel * width_; }
  int64_t columns_floats() const { return table_.column_panel_floats(width_, length_); }
  int64_t source_columns_floats() const {
    return self_ ? 0 : table_.column_panel_floats(source_.size(2), source_length_);
  }
  int64_t angle_floats() const { return 2 * panels_ * table_.panel * rotary_dim_; }
  int64_t sample_floats(int64_t sample) const {
    return grad_floats() + 2 * columns_floats() + source_columns_floats() + 2 * angle_floats() +
           panels_ * query_stride(sample) + (self_ ? 0 : source_panels_ * key_stride(sample)) +
           2 * pairs_of(sample) * length_ * row_ + 2 * kv_of(sample) * source_length_ * row_;
  }

  void clear_idle_heads() {
    const auto clear = [this](int m, const WorkList& list) {
      for (int64_t head = 0; head < list.heads; ++head) {
        if (list.col_offset[head] < list.col_offset[head + 1]) continue;
        const int64_t dim = m == kMatrixO ? 1 : 0, first = head * head_dim_;
        if (weight_[m].defined()) weight_[m].narrow(dim, first, head_dim_).zero_();
        if (m != kMatrixO && bias_[m].defined()) bias_[m].narrow(0, first, head_dim_).zero_();
      }
    };
    clear(kMatrixQ, list_), clear(kMatrixO, list_);
    clear(kMatrixK, kv_), clear(kMatrixV, kv_);
  }

  static std::vector<bool> open_heads(const WorkList& list) {
    std::vector<bool> open(list.heads);
    for (int64_t head = 0; head < list.heads; ++head) {
      open[head] = list.col_offset[head] < list.col_offset[head + 1];
    }
    return open;
  }

  // An input's gradient sums over these: by sample in the order of its panels.
  void pack_weights() {
    thread_local Arena arenas[kMatrices];
    const AttentionWeights& weights = problem_.weights;
    output_.emplace(pack_output_blocks(weights.o, head_dim_, open_heads(list_), arenas[kMatrixO]));
    if (gradients_[kX].defined()) {
      q_weight_.emplace(weights.q, head_dim_, open_heads(list_), batch_ * length_,
                        arenas[kMatrixQ]);
    }
    const bool of_source = gradients_[self_ ? kX : kKv].defined();
    if (of_source) {
      const int64_t tokens = batch_ * source_length_;
      k_weight_.emplace(weights.k, head_dim_, open_heads(kv_), tokens, arenas[kMatrixK]);
      v_weight_.emplace(weights.v, head_dim_, open_heads(kv_), tokens, arenas[kMatrixV]);
    }
    for (int64_t b = 0; b < batch_; ++b) {
      query_weight_offset_.push_back(static_cast<int64_t>(query_weights_.size()));
      if (q_weight_) push_heads(*q_weight_, list_, b, query_weights_);
      if (!of_source) continue;
      std::vector<const float*>& of_keys = self_ ? query_weights_ : key_weights_;
      push_heads(*k_weight_, kv_, b, of_keys);
      push_heads(*v_weight_, kv_, b, of_keys);
    }
  }

  static void push_heads(const InputWeight& weight, const WorkList& list, int64_t sample,
                         std::vector<const float*>& to) {
    for (int64_t i = list.row_offset[sample]; i < list.row_offset[sample + 1]; ++i) {
      to.push_back(weight.at(list.head_index[i]));
    }
  }

  // The pairs of each KV head of each sample.
  void find_tasks() {
    sample_of_.resize(kv_.pairs());
    pairs_of_kv_.resize(kv_.pairs());
    for (int64_t b = 0; b < batch_; ++b) {
      std::fill(sample_of_.begin() + kv_.row_offset[b], sample_of_.begin() + kv_.row_offset[b + 1],
                b);
      for (int64_t pair = list_.row_offset[b]; pair < list_.row_offset[b + 1]; ++pair) {
        pairs_of_kv_[pairs_.kv_entry(b, list_.head_index[pair])].push_back(pair);
      }
    }
  }

  // One group: samples [first_, first_ + count_).
  void run_group(int64_t first, int64_t end) {
    first_ = first;
    count_ = end - first;
    place_group();
    if (!order_.empty()) {
      run_queue(threads_, count_ * kPrepareItems, 0,
                [this](int64_t task, float*) { prepare(task); });
      run_queue(threads_, static_cast<int64_t>(order_.size()), scratch_.floats(),
                [this](int64_t task, float* scratch) { attend(order_[task], scratch); });
    }
    const int64_t weight_tasks = order_.empty() ? 0 : 2 * (heads_ + kv_heads_) * kWeightParts;
    const int64_t query_blocks = row_blocks(panels_);
    const int64_t query_tasks = gradients_[kX].defined() ? count_ * query_blocks : 0;
    const int64_t source_blocks = row_blocks(source_panels_);
    const int64_t source_tasks = gradients_[kKv].defined() ? count_ * source_blocks : 0;
    run_queue(threads_, weight_tasks + query_tasks + source_tasks,
              table_.weight_gradient_scratch_floats(head_dim_), [&](int64_t task, float* scratch) {
                if (task < weight_tasks) return sum_weight(task, scratch);
                task -= weight_tasks;
                if (task < query_tasks) {
                  return sum_input(kX, task / query_blocks, task % query_blocks);
                }
                task -= query_tasks;
                sum_input(kKv, task / source_blocks, task % source_blocks);
              });
  }

  int64_t input_panels() const { return std::max<int64_t>(1, kPassRows / table_.panel); }
  int64_t row_blocks(int64_t panels) const { return ceil_div(panels, input_panels()); }

  void place_group() {
    query_rows_.fill(list_, first_, count_);
    kv_rows_.fill(kv_, first_, count_);
    Places group;
    tokens_ = group.place(count_ * grad_floats());
    columns_ = group.place(count_ * columns_floats());
    grad_columns_ = group.place(count_ * columns_floats());
    source_columns_ = self_ ? columns_ : group.place(count_ * source_columns_floats());
    angles_ = group.place(count_ * angle_floats());
    key_angles_ = group.place(count_ * angle_floats());
    query_place_.clear();
    key_place_.clear();
    order_.clear();
    int64_t most_keys = 0;
    for (int64_t b = first_; b < first_ + count_; ++b) {
      query_place_.push_back(group.place(panels_ * query_stride(b)));
      key_place_.push_back(self_ ? query_place_.back() + pairs_of(b) * head_dim_ * table_.panel
                                 : group.place(source_panels_ * key_stride(b)));
      for (int64_t kv = kv_.row_offset[b]; kv < kv_.row_offset[b + 1]; ++kv) order_.push_back(kv);
      if (kv_of(b) > 0) most_keys = std::max(most_keys, pairs_.keys[b].count);
    }
    const int64_t query_rows = query_rows_.pairs() * length_ * row_;
    const int64_t key_rows = kv_rows_.pairs() * source_length_ * row_;
    for (const int m : {kMatrixQ, kMatrixO}) rows_[m] = group.place(query_rows);
    for (const int m : {kMatrixK, kMatrixV}) rows_[m] = group.place(key_rows);
    thread_local Arena arena;
    group_ = arena.reserve(group.floats());

    // Longest first, so that short tasks fill the idle tail of the last threads.
    const auto cost = [this](int64_t kv) {
      return static_cast<int64_t>(pairs_of_kv_[kv].size()) *
             (width_ + 3 * pairs_.keys[sample_of_[kv]].count);
    };
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
    if (bias_sum_ != nullptr) {
      for (const int64_t kv : order_) {
        for (const int64_t pair : pairs_of_kv_[kv]) {
          bias_sum_->queue(pair, sample_of_[kv], list_.head_index[pair]);
        }
      }
    }
    place_scratch(most_keys);
  }

  void place_scratch(int64_t num_keys) {
    scratch_ = Places();
    const int64_t keys = round_up(num_keys, table_.panel);
    u_ = scratch_.place(panels_ * table_.panel * head_dim_);
    given_k_ = scratch_.place(problem_.keys_given() ? keys * head_dim_ : 0);
    k_rows_ = scratch_.place(num_keys * row_);
    v_panels_ = scratch_.place(keys * head_dim_);
    dk_ = scratch_.place(num_keys * row_);
    dv_ = scratch_.place(num_keys * row_);
    dk_panels_ = scratch_.place(problem_.k_transform.empty() ? 0 : keys * head_dim_);
    d_scores_ = scratch_.place(bias_sum_ ? panels_ * table_.panel * num_keys : 0);
    turned_ = scratch_.place(bias_sum_ ? table_.bias_gradient_scratch_floats() : 0);
    attend_ = scratch_.place(table_.attend_backward_scratch_floats(num_keys, head_dim_));
  }

  static constexpr int64_t kPrepareItems = 5;

  void prepare(int64_t task) {
    const int64_t place = task / kPrepareItems, sample = first_ + place;
    if (pairs_of(sample) == 0) return;
    const float* x = x_.const_data_ptr<float>() + sample * length_ * width_;
    const float* grad = grad_.const_data_ptr<float>() + sample * length_ * width_;
    switch (task % kPrepareItems) {
      case 0:
        return pack_panels({.x = grad,
                            .rows = nullptr,
                            .panel = group_ + tokens_ + place * grad_floats(),
                            .row_stride = width_,
                            .tokens = length_,
                            .width = width_});
      case 1: {
        const bool of_keys = self_ && (weight_[kMatrixK].defined() || weight_[kMatrixV].defined());
        if (!weight_[kMatrixQ].defined() && !of_keys) return;
        return pack_columns(x, length_, width_, columns_ + place * columns_floats());
      }
      case 2:
        if (!weight_[kMatrixO].defined()) return;
        return pack_columns(grad, length_, width_, grad_columns_ + place * columns_floats());
      case 3: {
        if (self_ || !(weight_[kMatrixK].defined() || weight_[kMatrixV].defined())) return;
        const int64_t width = source_.size(2);
        return pack_columns(source_.const_data_ptr<float>() + sample * source_length_ * width,
                            source_length_, width,
                            source_columns_ + place * source_columns_floats());
      }
      default:
        if (rotary_dim_ > 0 && of_scores_) pack_angles(sample, place);
    }
  }

  void pack_columns(const float* x, int64_t length, int64_t width, int64_t at) const {
    table_.pack_column_panels({.from = x,
                               .packed = group_ + at,
                               .stride = width,
                               .count = width,
                               .depth = length,
                               .transposed = true});
  }

  // As `pack_tokens`, of many panels.
  void pack_panels(const kernels::PackTokensParams& all) const {
    kernels::PackTokensParams p = all;
    for (int64_t first = 0; first < all.tokens; first += table_.panel) {
      p.x = all.rows == nullptr ? all.x + first * all.row_stride : all.x;
      p.rows = all.rows == nullptr ? nullptr : all.rows + first;
      p.panel = all.panel + first * all.width;
      p.tokens = std::min(table_.panel, all.tokens - first);
      table_.pack_tokens(p);
    }
  }

  // Cosines, then sines, of the tokens of a sample and of its keys.
  void pack_angles(int64_t sample, int64_t place) const {
    const CpuPairs::Keys& keys = pairs_.keys[sample];
    float* to = group_ + angles_ + place * angle_floats();
    float* of_keys = group_ + key_angles_ + place * angle_floats();
    for (const at::Tensor& tensor : {cosines_, sines_}) {
      const int64_t at = tensor.size(0) == 1 ? 0 : sample;
      const float* from = tensor.const_data_ptr<float>() + at * length_ * rotary_dim_;
      pack_panels({.x = from,
                   .rows = nullptr,
                   .panel = to,
                   .row_stride = rotary_dim_,
                   .tokens = length_,
                   .width = rotary_dim_});
      to += angle_floats() / 2;
      if (!self_) continue;
      pack_panels({.x = keys.rows.empty() ? from + keys.first * rotary_dim_ : from,
                   .rows = pairs_.key_rows(sample),
                   .panel = of_keys,
                   .row_stride = rotary_dim_,
                   .tokens = keys.count,
                   .width = rotary_dim_});
      of_keys += angle_floats() / 2;
    }
  }

  // One KV head of one sample and the pairs that read it.
  void attend(int64_t kv, float* scratch) {
    const int64_t sample = sample_of_[kv], num_keys = pairs_.keys[sample].count;
    const float* k = nullptr;
    if (of_scores_) {
      k = find_keys(kv, scratch);
      std::fill_n(scratch + dk_, num_keys * row_, 0.0f);
      std::fill_n(scratch + dv_, num_keys * row_, 0.0f);
    }
    for (const int64_t pair : pairs_of_kv_[kv]) attend_pair(pair, sample, k, scratch);
    if (!of_scores_) return;
    if (problem_.keys_given()) return write_given(kv, scratch);
    if (!problem_.k_transform.empty()) transform_keys(kv, scratch);
    const int64_t place = sample - first_;
    float* panels =
        group_ + key_place_[place] + (kv - kv_.row_offset[sample]) * head_dim_ * table_.panel;
    const int64_t at = kv_rows_.place[kv] * source_length_ * row_;
    for (const int matrix : {kMatrixK, kMatrixV}) {
      table_.place_keys({.of_keys = scratch + (matrix == kMatrixK ? dk_ : dv_),
                         .key_position = pairs_.key_position(sample),
                         .rows = group_ + rows_[matrix] + at,
                         .panels = panels,
                         .num_keys = num_keys,
                         .num_tokens = source_length_,
                         .head_dim = head_dim_,
                         .panel_stride = key_stride(sample)});
      panels += kv_of(sample) * head_dim_ * table_.panel;
    }
  }

  // Panels of the keys; also their rows and panels of the values, in the scratch.
  const float* find_keys(int64_t kv, float* scratch) const {
    const int64_t sample = sample_of_[kv];
    const CpuPairs::Keys& keys = pairs_.keys[sample];
    if (!problem_.keys_given()) {
      table_.prepare_keys({.k = saved_.k(kv),
                           .v = saved_.v(kv),
                           .k_rows = scratch + k_rows_,
                           .v_panels = scratch + v_panels_,
                           .num_keys = keys.count,
                           .head_dim = head_dim_});
      return saved_.k(kv);
    }
    const auto pack = [&](const GivenRows& given, float* panels) {
      const float* from = given.of(sample, kv_.head_index[kv]);
      pack_panels({.x = keys.rows.empty() ? from + keys.first * given.stride() : from,
                   .rows = pairs_.key_rows(sample),
                   .panel = panels,
                   .row_stride = given.stride(),
                   .tokens = keys.count,
                   .width = head_dim_});
    };
    pack(k_, scratch + given_k_);
    pack(v_, scratch + v_panels_);
    table_.panels_to_rows({.panels = scratch + given_k_,
                           .rows = scratch + k_rows_,
                           .num_tokens = keys.count,
                           .head_dim = head_dim_,
                           .panel_stride = table_.panel * head_dim_});
    return scratch + given_k_;
  }

  void attend_pair(int64_t pair, int64_t sample, const float* k, float* scratch) {
    const int64_t place = sample - first_, head = list_.head_index[pair];
    const int64_t num_keys = pairs_.keys[sample].count;
    float* u = scratch + u_;
    table_.project_panels({.tokens = group_ + tokens_ + place * grad_floats(),
                           .weights = output_->at(head, 0),
                           .bias = nullptr,
                           .out = u,
                           .num_tokens = length_,
                           .width = width_,
                           .head_dim = head_dim_,
                           .scale = 1.0f});
    float* dq =
        group_ + query_place_[place] + (pair - list_.row_offset[sample]) * head_dim_ * table_.panel;
    const int64_t rows = query_rows_.place[pair] * length_ * row_;
    const kernels::ScoreParams scores = pairs_.scores(sample, head);
    float* d_scores = bias_sum_ == nullptr ? nullptr : scratch + d_scores_;
    table_.attend_backward(
        {.q = saved_.q(pair),
         .k = k,
         .k_rows = scratch + k_rows_,
         .v_panels = scratch + v_panels_,
         .context = saved_.context(pair),
         .softmax = saved_.softmax(pair),
         .u = u,
         .dq = dq,
         .context_rows = group_ + rows_[kMatrixO] + rows,
         .dk = scratch + dk_,
         .dv = scratch + dv_,
         .d_scores = d_scores,
         .gate_gradient = of_pairs_.mutable_data_ptr<float>() + sample * heads_ + head,
         .scratch = scratch + attend_,
         .scores = scores,
         .num_tokens = length_,
         .num_keys = num_keys,
         .head_dim = head_dim_,
         .dq_stride = query_stride(sample),
         .gate = list_.scale[pair],
         .scale = static_cast<float>(problem_.scale),
         .of_scores = of_scores_});
    if (!of_scores_) return;
    if (bias_sum_ != nullptr) {
      bias_sum_->add({.d_scores = d_scores,
                      .key_position = scores.key_position,
                      .out = nullptr,
                      .scratch = scratch + turned_,
                      .query_stride = 0,
                      .key_stride = 0,
                      .num_tokens = length_,
                      .num_keys = num_keys},
                     pair, sample, head, table_);
    }
    if (!problem_.q_transform.empty()) {
      const float* angles = group_ + angles_ + place * angle_floats();
      table_.transform_backward(transform(q_norm_, q_norm_sums_, pair, saved_.projected_q(pair),
                                          angles, dq, query_stride(sample), length_));
    }
    table_.panels_to_rows({.panels = dq,
                           .rows = group_ + rows_[kMatrixQ] + rows,
                           .num_tokens = length_,
                           .head_dim = head_dim_,
                           .panel_stride = query_stride(sample)});
  }

  kernels::TransformBackwardParams transform(const at::Tensor& norm, const at::Tensor& norm_sums,
                                             int64_t row, const float* projected,
                                             const float* angles, float* panels, int64_t stride,
                                             int64_t count) const {
    const bool turns = rotary_dim_ > 0, normed = norm.defined();
    return {.panels = panels,
            .projected = normed ? projected : nullptr,
            .norm_weight = normed ? norm.const_data_ptr<float>() : nullptr,
            .cosines = turns ? angles : nullptr,
            .sines = turns ? angles + angle_floats() / 2 : nullptr,
            .norm_gradient =
                normed ? norm_sums.mutable_data_ptr<float>() + row * norm_sums.size(1) : nullptr,
            .num_tokens = count,
            .head_dim = head_dim_,
            .rotary_dim = rotary_dim_,
            .panel_stride = stride,
            .norm_eps = static_cast<float>(problem_.q_transform.norm_eps)};
  }

  // Of the rows of dk, through panels.
  void transform_keys(int64_t kv, float* scratch) const {
    const int64_t sample = sample_of_[kv], stride = table_.panel * head_dim_;
    const kernels::TurnPanelsParams turn{.panels = scratch + dk_panels_,
                                         .rows = scratch + dk_,
                                         .num_tokens = pairs_.keys[sample].count,
                                         .head_dim = head_dim_,
                                         .panel_stride = stride};
    table_.rows_to_panels(turn);
    const float* angles = group_ + key_angles_ + (sample - first_) * angle_floats();
    table_.transform_backward(transform(k_norm_, k_norm_sums_, kv, saved_.projected_k(kv), angles,
                                        turn.panels, stride, turn.num_tokens));
    table_.panels_to_rows(turn);
  }

  void write_given(int64_t kv, const float* scratch) {
    const int64_t sample = sample_of_[kv];
    const int32_t* position = pairs_.key_position(sample);
    for (const auto& [gradient, from] : {std::pair(kK, scratch + dk_), {kV, scratch + dv_}}) {
      if (!gradients_[gradient].defined()) continue;
      float* to = gradients_[gradient].mutable_data_ptr<float>() +
                  (sample * kv_heads_ + kv_.head_index[kv]) * source_length_ * head_dim_;
      for (int64_t key = 0; key < pairs_.keys[sample].count; ++key) {
        std::copy_n(from + key * row_, head_dim_, to + position[key] * head_dim_);
      }
    }
  }

  void sum_weight(int64_t task, float* scratch) {
    const int64_t part = task % kWeightParts;
    int64_t head = task / kWeightParts;
    const bool of_queries = head < 2 * heads_;
    if (!of_queries) head -= 2 * heads_;
    const int m =
        of_queries ? (head % 2 == 0 ? kMatrixQ : kMatrixO) : (head % 2 == 0 ? kMatrixK : kMatrixV);
    head /= 2;
    const HeadRows& of_heads = of_queries ? query_rows_ : kv_rows_;
    const WorkList& list = of_queries ? list_ : kv_;
    const int64_t begin = of_heads.offset[head], count = of_heads.offset[head + 1] - begin;
    if (count == 0 || !weight_[m].defined()) return;
    const bool of_output = m == kMatrixO, of_columns = of_queries || self_;
    const int64_t length = of_queries ? length_ : source_length_;
    const int64_t width = of_queries ? width_ : source_.size(2);
    const int64_t inner = heads_ * head_dim_, first = head * head_dim_;
    const int64_t columns = of_output ? grad_columns_ : of_queries ? columns_ : source_columns_;
    const bool of_bias = !of_output && bias_[m].defined();
    table_.weight_gradient(
        {.rows = group_ + rows_[m] + begin * length * row_,
         .columns = group_ + columns,
         .sample_index = of_heads.samples.data() + begin,
         .out = weight_[m].mutable_data_ptr<float>() + first * (of_output ? 1 : width),
         .bias = of_bias ? bias_[m].mutable_data_ptr<float>() + first : nullptr,
         .scratch = scratch,
         .num_samples = count,
         .num_tokens = length,
         .width = width,
         .head_dim = head_dim_,
         .sample_stride = of_columns ? columns_floats() : source_columns_floats(),
         .out_stride = of_output ? inner : width,
         .transposed = of_output,
         .add = list.sample_index[list.col_offset[head]] < first_,
         .part = part,
         .parts = kWeightParts});
  }

  // Some rows of the gradient of x, or of the source of keys and values.
  void sum_input(Differentiable input, int64_t place, int64_t block) {
    const int64_t sample = first_ + place, first_panel = block * input_panels();
    const int64_t first = first_panel * table_.panel;
    const bool of_x = input == kX;
    const int64_t length = of_x ? length_ : source_length_;
    const int64_t width = of_x ? width_ : source_.size(2);
    const int64_t stride = of_x ? query_stride(sample) : key_stride(sample);
    const int64_t panels = of_x ? query_place_[place] : key_place_[place];
    const float* const* weights = of_x ? query_weights_.data() + query_weight_offset_[sample]
                                       : key_weights_.data() + 2 * kv_.row_offset[sample];
    const std::vector<float> start(width + table_.vector_length, 0.0f);
    table_.sum_projections(
        {.context = group_ + panels + first_panel * stride,
         .weights = weights,
         .start = start.data(),
         .out = gradients_[input].mutable_data_ptr<float>() + (sample * length + first) * width,
         .num_segments = stride / (head_dim_ * table_.panel),
         .num_tokens = std::min(input_panels() * table_.panel, length - first),
         .width = width,
         .head_dim = head_dim_,
         .context_stride = stride,
         .part = 0,
         .parts = 1,
         .weight_stride = (of_x ? q_weight_ : k_weight_)->stride()});
  }

  at::Tensor norm_gradient(const at::Tensor& sums) const {
    if (!sums.defined()) return {};
    return sums.view({-1, head_dim_, table_.vector_length}).sum({0, 2}, false, at::kDouble);
  }

  const KernelTable& table_;
  const AttentionProblem& problem_;
  const SavedPairs& saved_;
  const CpuPairs pairs_;
  const WorkList& list_;
  const WorkList& kv_;
  const at::Tensor x_, source_, grad_, cosines_, sines_, q_norm_, k_norm_;
  GivenRows k_, v_;  // if given
  const int64_t batch_, length_, source_length_, width_, heads_, kv_heads_, head_dim_, panels_,
      source_panels_, row_, rotary_dim_, threads_;
  const bool self_;  // keys and values are projected from x
  const bool of_scores_;
  at::Tensor weight_[kMatrices], bias_[3], of_pairs_, q_norm_sums_, k_norm_sums_;
  DifferentiableTensors gradients_;
  std::unique_ptr<BiasSum> bias_sum_;
  std::optional<PackedHeads> output_;
  std::optional<InputWeight> q_weight_, k_weight_, v_weight_;
  std::vector<const float*> query_weights_, key_weights_;
  std::vector<int64_t> query_weight_offset_;       // [B]
  std::vector<int64_t> sample_of_;                 // of each entry of kv_
  std::vector<std::vector<int64_t>> pairs_of_kv_;  // of each entry of kv_

  // The group.
  int64_t first_ = 0, count_ = 0;
  HeadRows query_rows_, kv_rows_;
  std::vector<int64_t> order_;  // entries of kv_
  std::vector<int64_t> query_place_, key_place_;
  float* group_ = nullptr;
  int64_t tokens_ = 0, columns_ = 0, grad_columns_ = 0, source_columns_ = 0, angles_ = 0,
          key_angles_ = 0;
  int64_t rows_[kMatrices] = {};
  // The scratch of a task.
  Places scratch_;
  int64_t u_ = 0, given_k_ = 0, k_rows_ = 0, v_panels_ = 0, dk_ = 0, dv_ = 0, dk_panels_ = 0,
          d_scores_ = 0, turned_ = 0, attend_ = 0;
};

}  // namespace

DifferentiableTensors attention_cpu_backward(const AttentionProblem& problem,
                                             const at::Tensor& grad, const at::Tensor& saved,
                                             GradientMask mask) {
  if (problem.x.numel() == 0 || problem.heads == 0 || problem.head_dim == 0) {
    return attention_composite_backward(problem, grad, mask);
  }
  GradientMask of_pairs = mask;
  of_pairs[kOBias] = of_pairs[kDroppedOutput] = false;
  DifferentiableTensors gradients;
  at::Tensor pair_gradients;
  if (std::any_of(of_pairs.begin(), of_pairs.end(), [](bool wanted) { return wanted; })) {
    at::Tensor memory = saved;
    if (!memory.defined()) {
      // Somebody trains these weights: their packed form is not worth keeping.
      const at::AutoGradMode grad_mode(true);
      memory = at::empty({SavedPairs::floats(problem)}, problem.x.options().dtype(at::kFloat));
      save_pairs(problem, memory);
    }
    const SavedPairs pairs(problem, memory);
    BackwardLaunch launch(problem, pairs, grad, mask);
    launch.run();
    gradients = launch.gradients();
    pair_gradients = launch.of_pairs();
  }
  const bool of_dropped = mask[kDroppedOutput] && problem.gate.defined();
  if (!mask[kOBias] && !mask[kGate] && !of_dropped) return gradients;
  const OuterSums outer({.gate = problem.gate,
                         .dropped_output = problem.dropped_output,
                         .units = problem.heads,
                         .skip = problem.skip},
                        grad);
  if (mask[kOBias]) gradients[kOBias] = outer.bias();
  if (mask[kGate]) gradients[kGate] = outer.gate(pair_gradients);
  if (of_dropped) gradients[kDroppedOutput] = outer.dropped_output();
  return gradients;
}

}  // namespace headkit
