#include <ATen/ATen.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "attention/composite_backward.h"
#include "attention/cpu_pairs.h"
#include "attention/packed_weights.h"
#include "kernels/dispatch.h"
#include "operators/float32.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

using kernels::KernelTable;

// Rows of one task of the gradient of x: each panel of weights comes from memory once for them.
constexpr int64_t kInputRows = 192;
// Floats of the workspace of one group of samples, unless a single sample needs more. A group sees
// the weights' gradients once.
constexpr int64_t kGroupFloats = int64_t{1} << 24;
// Cuts of one weight's gradient, so that few heads keep many threads busy.
constexpr int64_t kWeightParts = 4;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

enum Matrix : int { kQ, kK, kV, kO, kMatrices };

// The weights of the heads that run, in the layouts of both directions.
struct Packed {
  PackedHeads query, key_value, query_backward, key_value_backward;
};

// Scratch of one pair.
struct PairScratch {
  int64_t q = 0, k = 0, u = 0, v_panels = 0;  // token panels
  int64_t v = 0, k_rows = 0, dk = 0, dv = 0;  // rows
  int64_t attend = 0, floats = 0;

  PairScratch() = default;
  PairScratch(const KernelTable& table, int64_t length, int64_t num_keys, int64_t head_dim,
              int64_t row) {
    const auto place = [this](int64_t count) {
      const int64_t at = floats;
      floats += ceil_div(count, 16) * 16;
      return at;
    };
    const auto panels = [&](int64_t tokens) {
      return place(ceil_div(tokens, table.panel) * table.panel * head_dim);
    };
    q = panels(length), k = panels(num_keys), u = panels(length), v_panels = panels(num_keys);
    v = place(num_keys * row), k_rows = place(num_keys * row);
    dk = place(num_keys * row), dv = place(num_keys * row);
    attend = place(table.attend_backward_scratch_floats(num_keys, head_dim));
  }
};

// The stages are queues of their own: pairs, then what sums over them. Every sum runs over its
// pairs in a fixed order inside one task, so neither threads nor their number show in a result; the
// groups of samples are a matter of the problem alone.
class BackwardLaunch {
 public:
  BackwardLaunch(const AttentionProblem& problem, const at::Tensor& grad, const GradientMask& mask)
      : table_(kernels::kernel_table()),
        problem_(problem),
        pairs_(problem),
        list_(pairs_.list),
        x_(in_float32(problem.x)),
        grad_(in_float32(grad)),
        batch_(x_.size(0)),
        length_(x_.size(1)),
        width_(x_.size(2)),
        heads_(problem.heads),
        head_dim_(problem.head_dim),
        panels_(ceil_div(length_, table_.panel)),
        row_(ceil_div(head_dim_, table_.vector_length) * table_.vector_length),
        threads_(queue_threads()),
        input_(mask[kX]),
        of_scores_(mask[kX] || mask[kQWeight] || mask[kKWeight] || mask[kVWeight] || mask[kQBias] ||
                   mask[kKBias] || mask[kVBias]) {
    const int64_t inner = heads_ * head_dim_;
    const auto room = [&](bool wanted, at::IntArrayRef shape) {
      return wanted ? at::empty(shape, x_.options()) : at::Tensor();
    };
    if (input_) gradients_[kX] = at::empty_like(x_);
    const Differentiable weights[] = {kQWeight, kKWeight, kVWeight};
    const Differentiable biases[] = {kQBias, kKBias, kVBias};
    for (int m = kQ; m <= kV; ++m) {
      weight_[m] = room(mask[weights[m]] || mask[biases[m]], {inner, width_});
      bias_[m] = room(mask[biases[m]], {inner});
      if (mask[weights[m]]) gradients_[weights[m]] = weight_[m];
      gradients_[biases[m]] = bias_[m];
    }
    gradients_[kOWeight] = weight_[kO] = room(mask[kOWeight], {width_, inner});
    of_pairs_ = at::zeros({batch_, heads_}, x_.options());
    clear_idle_heads();
  }

  void run() {
    std::vector<bool> wanted(heads_);
    for (int64_t head = 0; head < heads_; ++head) {
      wanted[head] = list_.col_offset[head] < list_.col_offset[head + 1];
    }
    const AttentionWeights& weights = problem_.weights;
    packed_ =
        std::make_unique<Packed>(Packed{pack_query_heads(weights, head_dim_, wanted),
                                        pack_key_value_heads(weights, head_dim_, wanted),
                                        pack_query_heads_backward(weights, head_dim_, wanted),
                                        pack_key_value_heads_backward(weights, head_dim_, wanted)});
    for (const int32_t head : list_.head_index) {
      input_weights_.push_back(packed_->query_backward.at(head, kQueryPanels));
      input_weights_.push_back(packed_->key_value_backward.at(head, kKeyPanels));
      input_weights_.push_back(packed_->key_value_backward.at(head, kValueBackwardPanels));
    }
    for (int64_t first = 0; first < batch_;) {
      int64_t end = first, floats = 0;
      for (; end < batch_ && (end == first || floats + sample_floats(end) <= kGroupFloats); ++end) {
        floats += sample_floats(end);
      }
      run_group(first, end);
      first = end;
    }
  }

  /// <dOut W_O, context> of each pair, [B, H].
  const at::Tensor& of_pairs() const { return of_pairs_; }
  const DifferentiableTensors& gradients() const { return gradients_; }

 private:
  int64_t pairs_of(int64_t sample) const {
    return list_.row_offset[sample + 1] - list_.row_offset[sample];
  }
  int64_t token_floats() const { return panels_ * table_.panel * width_; }
  int64_t panel_stride(int64_t sample) const {
    return 3 * pairs_of(sample) * head_dim_ * table_.panel;
  }
  // Whether the keys are not the first tokens.
  bool own_keys(int64_t sample) const {
    return pairs_.key_rows(sample) != nullptr || pairs_.keys[sample].first > 0;
  }
  int64_t sample_floats(int64_t sample) const {
    return (own_keys(sample) ? 3 : 2) * token_floats() + 2 * columns_floats() +
           panels_ * panel_stride(sample) + kMatrices * pairs_of(sample) * length_ * row_;
  }
  int64_t columns_floats() const { return table_.column_panel_floats(width_, length_); }

  void clear_idle_heads() {
    for (int64_t head = 0; head < heads_; ++head) {
      if (list_.col_offset[head] < list_.col_offset[head + 1]) continue;
      const int64_t first = head * head_dim_;
      for (int m = kQ; m <= kV; ++m) {
        if (weight_[m].defined()) weight_[m].narrow(0, first, head_dim_).zero_();
        if (bias_[m].defined()) bias_[m].narrow(0, first, head_dim_).zero_();
      }
      if (weight_[kO].defined()) weight_[kO].narrow(1, first, head_dim_).zero_();
    }
  }

  // One group: samples [first_, first_ + count_).
  void run_group(int64_t first, int64_t end) {
    first_ = first;
    count_ = end - first;
    place_group();
    if (group_pairs_ > 0) {
      run_queue(threads_, count_ * 4, 0, [this](int64_t task, float*) { prepare(task); });
      run_queue(threads_, group_pairs_, scratch_.floats,
                [this](int64_t task, float* scratch) { attend(order_[task], scratch); });
    }
    const int64_t weight_tasks = group_pairs_ > 0 ? heads_ * kMatrices * kWeightParts : 0;
    const int64_t row_blocks = ceil_div(panels_, input_panels());
    const int64_t input_tasks = input_ ? count_ * row_blocks : 0;
    run_queue(threads_, weight_tasks + input_tasks,
              table_.weight_gradient_scratch_floats(head_dim_), [&](int64_t task, float* scratch) {
                if (task < weight_tasks) return sum_weight(task, scratch);
                sum_input(task - weight_tasks, row_blocks);
              });
  }

  int64_t input_panels() const { return std::max<int64_t>(1, kInputRows / table_.panel); }

  void place_group() {
    group_pairs_ = list_.row_offset[first_ + count_] - list_.row_offset[first_];
    // Pairs of one head follow each other in the rows.
    row_place_.assign(list_.pairs(), -1);
    in_group_.assign(heads_ + 1, 0);
    samples_.clear();
    for (int64_t head = 0; head < heads_; ++head) {
      for (int64_t i = list_.col_offset[head]; i < list_.col_offset[head + 1]; ++i) {
        const int64_t sample = list_.sample_index[i] - first_;
        if (sample < 0 || sample >= count_) continue;
        row_place_[list_.pair_of[i]] = static_cast<int64_t>(samples_.size());
        samples_.push_back(static_cast<int32_t>(sample));
      }
      in_group_[head + 1] = static_cast<int64_t>(samples_.size());
    }
    // Longest first, so that short pairs fill the idle tail of the last threads.
    order_.resize(group_pairs_);
    sample_of_.resize(list_.pairs());
    int64_t most_keys = 0, panel_floats = 0;
    panel_place_.assign(count_, 0);
    bool own = false;
    for (int64_t b = first_; b < first_ + count_; ++b) {
      panel_place_[b - first_] = panel_floats;
      panel_floats += panels_ * panel_stride(b);
      for (int64_t pair = list_.row_offset[b]; pair < list_.row_offset[b + 1]; ++pair) {
        order_[pair - list_.row_offset[first_]] = pair;
        sample_of_[pair] = b;
      }
      if (pairs_of(b) == 0) continue;
      most_keys = std::max(most_keys, pairs_.keys[b].count);
      own = own || own_keys(b);
    }
    std::stable_sort(order_.begin(), order_.end(), [this](int64_t a, int64_t b) {
      return pairs_.keys[sample_of_[a]].count > pairs_.keys[sample_of_[b]].count;
    });
    if (group_pairs_ == 0) return;
    scratch_ = PairScratch(table_, length_, most_keys, head_dim_, row_);
    matrix_stride_ = group_pairs_ * length_ * row_;
    thread_local Arena arena;
    const int64_t tokens = count_ * token_floats(), columns = count_ * columns_floats();
    tokens_ = arena.reserve((own ? 3 : 2) * tokens + 2 * columns + panel_floats +
                            kMatrices * matrix_stride_);
    grad_tokens_ = tokens_ + tokens;
    keys_ = grad_tokens_ + tokens;
    columns_ = keys_ + (own ? tokens : 0);
    grad_columns_ = columns_ + columns;
    gradient_panels_ = grad_columns_ + columns;
    rows_ = gradient_panels_ + panel_floats;
  }

  void prepare(int64_t task) {
    const int64_t place = task / 4, sample = first_ + place, item = task % 4;
    if (pairs_of(sample) == 0) return;
    const float* x = x_.const_data_ptr<float>() + sample * length_ * width_;
    const float* grad = grad_.const_data_ptr<float>() + sample * length_ * width_;
    if (item == 0) {
      pack_panels(x, nullptr, length_, tokens_ + place * token_floats());
      if (own_keys(sample)) {
        const CpuPairs::Keys& keys = pairs_.keys[sample];
        pack_panels(keys.rows.empty() ? x + keys.first * width_ : x, pairs_.key_rows(sample),
                    keys.count, keys_ + place * token_floats());
      }
    } else if (item == 1) {
      pack_panels(grad, nullptr, length_, grad_tokens_ + place * token_floats());
    } else {
      const bool of_grad = item == 3;
      if (of_grad ? !weight_[kO].defined() : !of_weights()) return;
      table_.pack_column_panels(
          {.from = of_grad ? grad : x,
           .packed = (of_grad ? grad_columns_ : columns_) + place * columns_floats(),
           .stride = width_,
           .count = width_,
           .depth = length_,
           .transposed = true});
    }
  }

  bool of_weights() const {
    return weight_[kQ].defined() || weight_[kK].defined() || weight_[kV].defined();
  }

  void pack_panels(const float* x, const int32_t* rows, int64_t count, float* panels) const {
    for (int64_t first = 0; first < count; first += table_.panel) {
      table_.pack_tokens({.x = rows == nullptr ? x + first * width_ : x,
                          .rows = rows == nullptr ? nullptr : rows + first,
                          .panel = panels + first * width_,
                          .row_stride = width_,
                          .tokens = std::min(table_.panel, count - first),
                          .width = width_});
    }
  }

  void attend(int64_t pair, float* scratch) {
    const int64_t sample = sample_of_[pair], place = sample - first_;
    const int64_t in_sample = pair - list_.row_offset[sample];
    const int64_t head = list_.head_index[pair], num_keys = pairs_.keys[sample].count;
    const float* tokens = tokens_ + place * token_floats();
    const float* keys = own_keys(sample) ? keys_ + place * token_floats() : tokens;
    float* q = scratch + scratch_.q;
    float* k = scratch + scratch_.k;
    float* v = scratch + scratch_.v;
    float* u = scratch + scratch_.u;
    const auto project = [&](const float* from, int64_t count, const PackedHeads& packed,
                             int64_t weights, int64_t bias, float* out, float scale) {
      return kernels::ProjectParams{.tokens = from,
                                    .weights = packed.at(head, weights),
                                    .bias = bias < 0 ? nullptr : packed.at(head, bias),
                                    .out = out,
                                    .num_tokens = count,
                                    .width = width_,
                                    .head_dim = head_dim_,
                                    .scale = scale};
    };
    const float scale = static_cast<float>(problem_.scale);
    table_.project_panels(
        project(tokens, length_, packed_->query, kQueryBlocks, kQueryBias, q, scale));
    table_.project_panels(
        project(keys, num_keys, packed_->key_value, kKeyBlocks, kKeyBias, k, 1.0f));
    table_.project_rows(
        project(keys, num_keys, packed_->key_value, kValuePanels, kValueBias, v, 1.0f));
    table_.project_panels(project(grad_tokens_ + place * token_floats(), length_,
                                  packed_->query_backward, kOutputBlocks, -1, u, 1.0f));
    float* dk = scratch + scratch_.dk;
    float* dv = scratch + scratch_.dv;
    if (of_scores_) {
      table_.prepare_keys({.k = k,
                           .v = v,
                           .k_rows = scratch + scratch_.k_rows,
                           .v_panels = scratch + scratch_.v_panels,
                           .num_keys = num_keys,
                           .head_dim = head_dim_});
      std::fill_n(dk, num_keys * row_, 0.0f);
      std::fill_n(dv, num_keys * row_, 0.0f);
    }
    float* panels =
        gradient_panels_ + panel_place_[place] + in_sample * 3 * head_dim_ * table_.panel;
    float* rows = rows_ + row_place_[pair] * length_ * row_;
    table_.attend_backward(
        {.forward = {.q = q,
                     .k = k,
                     .v = v,
                     .context = nullptr,
                     .log_sum_exp = nullptr,
                     .scratch = scratch + scratch_.attend,
                     .scores = pairs_.scores(sample, head),
                     .num_tokens = length_,
                     .num_keys = num_keys,
                     .head_dim = head_dim_,
                     .v_stride = row_,
                     .context_stride = 0,
                     .gate = list_.scale[pair]},
         .u = u,
         .k_rows = scratch + scratch_.k_rows,
         .v_panels = scratch + scratch_.v_panels,
         .dq = panels,
         .dq_rows = rows,
         .context_rows = rows + kO * matrix_stride_,
         .dk = dk,
         .dv = dv,
         .gate_gradient = of_pairs_.mutable_data_ptr<float>() + sample * heads_ + head,
         .dq_stride = panel_stride(sample),
         .scale = scale,
         .scores = of_scores_});
    if (!of_scores_) return;
    for (const int matrix : {kK, kV}) {
      table_.place_keys({.of_keys = matrix == kK ? dk : dv,
                         .key_position = pairs_.key_position(sample),
                         .rows = rows + matrix * matrix_stride_,
                         .panels = panels + matrix * head_dim_ * table_.panel,
                         .num_keys = num_keys,
                         .num_tokens = length_,
                         .head_dim = head_dim_,
                         .panel_stride = panel_stride(sample)});
    }
  }

  void sum_weight(int64_t task, float* scratch) {
    const int64_t head = task / (kMatrices * kWeightParts);
    const int m = task / kWeightParts % kMatrices;
    const int64_t begin = in_group_[head], count = in_group_[head + 1] - begin;
    if (count == 0 || !weight_[m].defined()) return;
    const int64_t inner = heads_ * head_dim_, first = head * head_dim_;
    table_.weight_gradient(
        {.rows = rows_ + m * matrix_stride_ + begin * length_ * row_,
         .columns = m == kO ? grad_columns_ : columns_,
         .sample_index = samples_.data() + begin,
         .out = weight_[m].mutable_data_ptr<float>() + first * (m == kO ? 1 : width_),
         .bias =
             m != kO && bias_[m].defined() ? bias_[m].mutable_data_ptr<float>() + first : nullptr,
         .scratch = scratch,
         .num_samples = count,
         .num_tokens = length_,
         .width = width_,
         .head_dim = head_dim_,
         .sample_stride = columns_floats(),
         .out_stride = m == kO ? inner : width_,
         .transposed = m == kO,
         .add = list_.sample_index[list_.col_offset[head]] < first_,
         .part = task % kWeightParts,
         .parts = kWeightParts});
  }

  void sum_input(int64_t task, int64_t row_blocks) {
    const int64_t place = task / row_blocks, sample = first_ + place;
    const int64_t first_panel = task % row_blocks * input_panels();
    const int64_t first = first_panel * table_.panel;
    const std::vector<float> start(width_ + table_.vector_length, 0.0f);
    table_.sum_projections(
        {.context = gradient_panels_ + panel_place_[place] + first_panel * panel_stride(sample),
         .weights = input_weights_.data() + 3 * list_.row_offset[sample],
         .start = start.data(),
         .out = gradients_[kX].mutable_data_ptr<float>() + (sample * length_ + first) * width_,
         .num_segments = 3 * pairs_of(sample),
         .num_tokens = std::min(input_panels() * table_.panel, length_ - first),
         .width = width_,
         .head_dim = head_dim_,
         .context_stride = panel_stride(sample),
         .part = 0,
         .parts = 1});
  }

  const KernelTable& table_;
  const AttentionProblem& problem_;
  const CpuPairs pairs_;
  const WorkList& list_;
  const at::Tensor x_, grad_;
  const int64_t batch_, length_, width_, heads_, head_dim_, panels_, row_, threads_;
  const bool input_, of_scores_;
  at::Tensor weight_[kMatrices], bias_[3], of_pairs_;
  DifferentiableTensors gradients_;
  std::unique_ptr<Packed> packed_;
  std::vector<const float*> input_weights_;  // of q, k, v of each pair

  int64_t first_ = 0, count_ = 0, group_pairs_ = 0, matrix_stride_ = 0;
  PairScratch scratch_;
  std::vector<int64_t> order_, sample_of_, row_place_, panel_place_;
  std::vector<int64_t> in_group_;  // [H + 1] first entry of each head in `samples_`
  std::vector<int32_t> samples_;   // by head, counted from first_
  float *tokens_ = nullptr, *grad_tokens_ = nullptr, *keys_ = nullptr, *columns_ = nullptr,
        *grad_columns_ = nullptr, *gradient_panels_ = nullptr, *rows_ = nullptr;
};

// What needs no more than the sum of grad over the tokens of each sample, and the gate: dgate of
// what a closed gate adds, the dropped outputs and the bias of the output.
class OuterGradients {
 public:
  OuterGradients(const AttentionProblem& problem, const at::Tensor& grad)
      : problem_(problem),
        batch_(grad.size(0)),
        width_(grad.size(2)),
        heads_(problem.heads),
        sums_(batch_ * width_, 0.0) {
    const at::Tensor dy = in_float32(grad);
    const int64_t length = grad.size(1);
    run_queue(queue_threads(), batch_, 0, [&](int64_t b, float*) {
      const float* row = dy.const_data_ptr<float>() + b * length * width_;
      double* sum = sums_.data() + b * width_;
      for (int64_t t = 0; t < length; ++t, row += width_) {
        for (int64_t d = 0; d < width_; ++d) sum[d] += row[d];
      }
    });
  }

  at::Tensor o_bias() const {
    std::vector<double> sum(width_, 0.0);
    for (int64_t b = 0; b < batch_; ++b) {
      for (int64_t d = 0; d < width_; ++d) sum[d] += sums_[b * width_ + d];
    }
    return to_tensor(sum, {width_});
  }

  /// sum over samples of (1 - gate) grad, [H, D].
  at::Tensor dropped_output() const {
    const at::Tensor gate = in_float32(problem_.gate.expand({batch_, heads_}));
    std::vector<double> sum(heads_ * width_, 0.0);
    for (int64_t b = 0; b < batch_; ++b) {
      for (int64_t head = 0; head < heads_; ++head) {
        const double share = 1.0 - gate.const_data_ptr<float>()[b * heads_ + head];
        if (share == 0.0) continue;
        for (int64_t d = 0; d < width_; ++d) {
          sum[head * width_ + d] += share * sums_[b * width_ + d];
        }
      }
    }
    return to_tensor(sum, {heads_, width_});
  }

  /// `of_pairs` [B, H] less what an open gate takes from the dropped outputs; summed over samples
  /// for a gate [H].
  at::Tensor gate(const at::Tensor& of_pairs) const {
    const bool shared = problem_.gate.dim() == 1;
    const bool drops = problem_.dropped_output.defined();
    const at::Tensor dropped = in_float32(problem_.dropped_output);
    const at::Tensor open = open_gates();
    std::vector<double> sum(shared ? heads_ : batch_ * heads_, 0.0);
    for (int64_t b = 0; b < batch_; ++b) {
      for (int64_t head = 0; head < heads_; ++head) {
        double value = of_pairs.const_data_ptr<float>()[b * heads_ + head];
        if (drops && open.const_data_ptr<bool>()[b * heads_ + head]) {
          const float* added = dropped.const_data_ptr<float>() + head * width_;
          for (int64_t d = 0; d < width_; ++d) value -= added[d] * sums_[b * width_ + d];
        }
        sum[shared ? head : b * heads_ + head] += value;
      }
    }
    return shared ? to_tensor(sum, {heads_}) : to_tensor(sum, {batch_, heads_});
  }

 private:
  // Bool [B, H]: pairs whose gate has a gradient.
  at::Tensor open_gates() const {
    const at::Tensor gate = problem_.gate.expand({batch_, heads_});
    return (problem_.skip ? gate != 0 : at::ones_like(gate, at::kBool)).contiguous();
  }

  at::Tensor to_tensor(const std::vector<double>& values, at::IntArrayRef shape) const {
    at::Tensor result = at::empty(shape, problem_.x.options().dtype(at::kFloat));
    std::transform(values.begin(), values.end(), result.mutable_data_ptr<float>(),
                   [](double value) { return static_cast<float>(value); });
    return result;
  }

  const AttentionProblem& problem_;
  const int64_t batch_, width_, heads_;
  std::vector<double> sums_;  // [B, D]
};

}  // namespace

DifferentiableTensors attention_cpu_backward(const AttentionProblem& problem,
                                             const at::Tensor& grad, GradientMask mask) {
  const bool plain = !problem.keys_given() && !problem.kv.defined() && problem.own_kv_heads() &&
                     problem.q_transform.empty() && problem.k_transform.empty() &&
                     !problem.attn_bias.defined() && !problem.window;
  if (problem.x.numel() == 0 || problem.heads == 0 || problem.head_dim == 0 || !plain) {
    return attention_composite_backward(problem, grad, mask);
  }
  GradientMask of_pairs = mask;
  of_pairs[kOBias] = of_pairs[kDroppedOutput] = false;
  DifferentiableTensors gradients;
  at::Tensor pair_gradients;
  if (std::any_of(of_pairs.begin(), of_pairs.end(), [](bool wanted) { return wanted; })) {
    BackwardLaunch launch(problem, grad, mask);
    launch.run();
    gradients = launch.gradients();
    pair_gradients = launch.of_pairs();
  }
  const bool of_dropped = mask[kDroppedOutput] && problem.gate.defined();
  if (!mask[kOBias] && !mask[kGate] && !of_dropped) return gradients;
  const OuterGradients outer(problem, grad);
  if (mask[kOBias]) gradients[kOBias] = outer.o_bias();
  if (mask[kGate]) gradients[kGate] = outer.gate(pair_gradients);
  if (of_dropped) gradients[kDroppedOutput] = outer.dropped_output();
  return gradients;
}

}  // namespace headkit
