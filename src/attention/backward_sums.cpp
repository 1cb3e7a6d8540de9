#include "attention/backward_sums.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "operators/cache_sizes.h"
#include "operators/rounding.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

// Cuts of one weight's gradient, so that few heads keep many threads busy.
constexpr int64_t kWeightParts = 4;

constexpr Differentiable kWeights[kMatrices] = {kQWeight, kKWeight, kVWeight, kOWeight};
constexpr Differentiable kBiases[] = {kQBias, kKBias, kVBias};

void push_heads(const InputWeight& weight, const WorkList& list, int64_t sample,
                std::vector<const float*>& to) {
  for (int64_t i = list.row_offset[sample]; i < list.row_offset[sample + 1]; ++i) {
    to.push_back(weight.at(list.head_index[i]));
  }
}

}  // namespace

BackwardSums::BackwardSums(const BackwardProblem& problem, const GradientMask& mask)
    : p_(problem), mask_(mask) {
  const auto room = [this](bool wanted, at::IntArrayRef shape) {
    return wanted ? at::empty(shape, p_.x.options()) : at::Tensor();
  };
  const int64_t inner = p_.heads * p_.head_dim, kv_inner = p_.kv_heads * p_.head_dim;
  of_x_ = room(mask[kX], p_.x.sizes());
  of_kv_ = room(mask[kKv], p_.source.sizes());
  weight_[kMatrixQ] = room(mask[kQWeight] || mask[kQBias], {inner, p_.width});
  weight_[kMatrixK] = room(mask[kKWeight] || mask[kKBias], {kv_inner, p_.source_width});
  weight_[kMatrixV] = room(mask[kVWeight] || mask[kVBias], {kv_inner, p_.source_width});
  weight_[kMatrixO] = room(mask[kOWeight], {p_.width, inner});
  bias_[kMatrixQ] = room(mask[kQBias], {inner});
  bias_[kMatrixK] = room(mask[kKBias], {kv_inner});
  bias_[kMatrixV] = room(mask[kVBias], {kv_inner});
  clear_idle_heads();
  pack_weights();
}

void BackwardSums::clear_idle_heads() {
  const auto clear = [this](Matrix m, const WorkList& list) {
    const std::vector<bool> open = open_heads(list);
    for (int64_t head = 0; head < list.heads; ++head) {
      if (open[head]) continue;
      const int64_t dim = m == kMatrixO ? 1 : 0, first = head * p_.head_dim;
      if (weight_[m].defined()) weight_[m].narrow(dim, first, p_.head_dim).zero_();
      if (m != kMatrixO && bias_[m].defined()) bias_[m].narrow(0, first, p_.head_dim).zero_();
    }
  };
  clear(kMatrixQ, p_.list), clear(kMatrixO, p_.list);
  clear(kMatrixK, p_.kv), clear(kMatrixV, p_.kv);
}

void BackwardSums::pack_weights() {
  thread_local Arena arenas[3];
  const AttentionWeights& weights = p_.problem.weights;
  if (of_x_.defined()) {
    q_weight_.emplace(weights.q, p_.head_dim, open_heads(p_.list), p_.batch * p_.length,
                      arenas[kMatrixQ]);
  }
  const bool of_source = (p_.self ? of_x_ : of_kv_).defined();
  if (of_source) {
    const int64_t tokens = p_.batch * p_.source_length;
    k_weight_.emplace(weights.k, p_.head_dim, open_heads(p_.kv), tokens, arenas[kMatrixK]);
    v_weight_.emplace(weights.v, p_.head_dim, open_heads(p_.kv), tokens, arenas[kMatrixV]);
  }
  for (int64_t b = 0; b < p_.batch; ++b) {
    query_weight_offset_.push_back(static_cast<int64_t>(query_weights_.size()));
    if (q_weight_) push_heads(*q_weight_, p_.list, b, query_weights_);
    if (!of_source) continue;
    std::vector<const float*>& of_keys = p_.self ? query_weights_ : key_weights_;
    push_heads(*k_weight_, p_.kv, b, of_keys);
    push_heads(*v_weight_, p_.kv, b, of_keys);
  }
}

int64_t BackwardSums::input_panels() const {
  return std::max<int64_t>(1, kPassRows / p_.table.panel);
}

int64_t BackwardSums::input_blocks(int64_t panels) const {
  return ceil_div(panels, input_panels());
}

void BackwardSums::begin(const BackwardGroup& group) {
  group_ = &group;
  weight_tasks_ = group.tasks().empty() ? 0 : 2 * (p_.heads + p_.kv_heads) * kWeightParts;
  query_tasks_ = of_x_.defined() ? group.count() * input_blocks(p_.panels) : 0;
  source_tasks_ = of_kv_.defined() ? group.count() * input_blocks(p_.source_panels) : 0;
}

int64_t BackwardSums::scratch_floats() const {
  return p_.table.weight_gradient_scratch_floats(p_.head_dim);
}

void BackwardSums::run(int64_t task, float* scratch) {
  if (task < weight_tasks_) return sum_weight(task, scratch);
  task -= weight_tasks_;
  const int64_t query_blocks = input_blocks(p_.panels);
  if (task < query_tasks_) return sum_input(kX, task / query_blocks, task % query_blocks);
  task -= query_tasks_;
  const int64_t source_blocks = input_blocks(p_.source_panels);
  sum_input(kKv, task / source_blocks, task % source_blocks);
}

void BackwardSums::sum_weight(int64_t task, float* scratch) {
  const int64_t part = task % kWeightParts;
  int64_t head = task / kWeightParts;
  const bool of_queries = head < 2 * p_.heads;
  if (!of_queries) head -= 2 * p_.heads;
  const Matrix m =
      of_queries ? (head % 2 == 0 ? kMatrixQ : kMatrixO) : (head % 2 == 0 ? kMatrixK : kMatrixV);
  head /= 2;
  const HeadRows& of_heads = of_queries ? group_->query_rows() : group_->key_rows();
  const WorkList& list = of_queries ? p_.list : p_.kv;
  const int64_t begin = of_heads.offset[head], count = of_heads.offset[head + 1] - begin;
  if (count == 0 || !weight_[m].defined()) return;
  const bool of_output = m == kMatrixO;
  const int64_t length = of_queries ? p_.length : p_.source_length;
  const int64_t width = of_queries ? p_.width : p_.source_width;
  const int64_t first = head * p_.head_dim;
  const bool of_bias = !of_output && bias_[m].defined();
  p_.table.weight_gradient(
      {.rows = group_->rows(m) + begin * length * p_.row,
       .columns = of_output    ? group_->grad_columns(0)
                  : of_queries ? group_->x_columns(0)
                               : group_->source_columns(0),
       .sample_index = of_heads.samples.data() + begin,
       .out = weight_[m].mutable_data_ptr<float>() + first * (of_output ? 1 : width),
       .bias = of_bias ? bias_[m].mutable_data_ptr<float>() + first : nullptr,
       .scratch = scratch,
       .num_samples = count,
       .num_tokens = length,
       .width = width,
       .head_dim = p_.head_dim,
       .sample_stride = of_queries ? group_->columns_floats() : group_->source_columns_floats(),
       .out_stride = of_output ? p_.heads * p_.head_dim : width,
       .transposed = of_output,
       .add = list.sample_index[list.col_offset[head]] < group_->first(),
       .part = part,
       .parts = kWeightParts});
}

// Some rows of the gradient of x, or of the source of keys and values.
void BackwardSums::sum_input(Differentiable input, int64_t place, int64_t block) {
  const int64_t sample = group_->first() + place, first_panel = block * input_panels();
  const int64_t first = first_panel * p_.table.panel;
  const bool of_x = input == kX;
  const int64_t length = of_x ? p_.length : p_.source_length;
  const int64_t width = of_x ? p_.width : p_.source_width;
  const int64_t stride = of_x ? group_->query_stride(place) : group_->key_stride(place);
  const float* panels = of_x ? group_->query_gradients(place) : group_->key_gradients(place);
  const float* const* weights = of_x ? query_weights_.data() + query_weight_offset_[sample]
                                     : key_weights_.data() + 2 * p_.kv.row_offset[sample];
  const std::vector<float> start(width + p_.table.vector_length, 0.0f);
  p_.table.sum_projections(
      {.context = panels + first_panel * stride,
       .weights = weights,
       .start = start.data(),
       .out = (of_x ? of_x_ : of_kv_).mutable_data_ptr<float>() + (sample * length + first) * width,
       .num_segments = stride / p_.panel_floats(),
       .num_tokens = std::min(input_panels() * p_.table.panel, length - first),
       .width = width,
       .head_dim = p_.head_dim,
       .context_stride = stride,
       .part = 0,
       .parts = 1,
       .weight_stride = (of_x ? q_weight_ : k_weight_)->stride()});
}

void BackwardSums::put(DifferentiableTensors& gradients) const {
  gradients[kX] = of_x_;
  gradients[kKv] = of_kv_;
  for (int m = 0; m < kMatrices; ++m) {
    if (mask_[kWeights[m]]) gradients[kWeights[m]] = weight_[m];
    if (m != kMatrixO) gradients[kBiases[m]] = bias_[m];
  }
}

}  // namespace headkit
