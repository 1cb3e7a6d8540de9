#include "attention/pair_backward.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "attention/token_panels.h"
#include "operators/rounding.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

PackedHeads pack_output(const BackwardProblem& p) {
  thread_local Arena arena;
  return pack_output_blocks(p.problem.weights.o, p.head_dim, open_heads(p.list), arena);
}

at::Tensor zeros(const BackwardProblem& p, bool wanted, at::IntArrayRef shape) {
  return wanted ? at::zeros(shape, p.x.options()) : at::Tensor();
}

}  // namespace

PairBackward::PairBackward(const BackwardProblem& problem, const GradientMask& mask)
    : p_(problem),
      output_(pack_output(problem)),
      of_pairs_(zeros(problem, true, {problem.batch, problem.heads})) {
  const int64_t lanes = p_.head_dim * p_.table.vector_length;
  q_norm_sums_ = zeros(p_, p_.of_scores && p_.q_norm.defined(), {p_.list.pairs(), lanes});
  k_norm_sums_ = zeros(p_, p_.of_scores && p_.k_norm.defined(), {p_.kv.pairs(), lanes});
  if (p_.problem.keys_given()) {
    const bool of_keys = mask[kK] || mask[kV];
    of_k_ = zeros(p_, of_keys, p_.problem.k.sizes());
    of_v_ = zeros(p_, of_keys, p_.problem.v.sizes());
  }
  if (mask[kAttnBias]) bias_sum_ = std::make_unique<BiasSum>(p_.problem.attn_bias, p_.list);
}

void PairBackward::begin(const BackwardGroup& group) {
  group_ = &group;
  if (bias_sum_ != nullptr) {
    for (const int64_t kv : group.tasks()) {
      for (const int64_t pair : p_.pairs_of_kv[kv]) {
        bias_sum_->queue(pair, p_.sample_of[kv], p_.list.head_index[pair]);
      }
    }
  }
  const int64_t num_keys = group.most_keys(), keys = round_up(num_keys, p_.table.panel);
  const int64_t queries = p_.panels * p_.table.panel;
  scratch_ = Places();
  u_ = scratch_.place(queries * p_.head_dim);
  given_k_ = scratch_.place(p_.problem.keys_given() ? keys * p_.head_dim : 0);
  k_rows_ = scratch_.place(num_keys * p_.row);
  v_panels_ = scratch_.place(keys * p_.head_dim);
  dk_ = scratch_.place(num_keys * p_.row);
  dv_ = scratch_.place(num_keys * p_.row);
  dk_panels_ = scratch_.place(p_.problem.k_transform.empty() ? 0 : keys * p_.head_dim);
  d_scores_ = scratch_.place(bias_sum_ ? queries * num_keys : 0);
  turned_ = scratch_.place(bias_sum_ ? p_.table.bias_gradient_scratch_floats() : 0);
  attend_ = scratch_.place(p_.table.attend_backward_scratch_floats(num_keys, p_.head_dim));
}

void PairBackward::run(int64_t kv, float* scratch) {
  const int64_t sample = p_.sample_of[kv], num_keys = p_.pairs.keys[sample].count;
  const float* k = nullptr;
  if (p_.of_scores) {
    k = find_keys(kv, scratch);
    std::fill_n(scratch + dk_, num_keys * p_.row, 0.0f);
    std::fill_n(scratch + dv_, num_keys * p_.row, 0.0f);
  }
  for (const int64_t pair : p_.pairs_of_kv[kv]) run_pair(pair, sample, k, scratch);
  if (!p_.of_scores) return;
  if (p_.problem.keys_given()) return write_given(kv, scratch);
  if (!p_.problem.k_transform.empty()) transform_keys(kv, scratch);
  const int64_t place = sample - group_->first();
  float* panels =
      group_->key_gradients(place) + (kv - p_.kv.row_offset[sample]) * p_.panel_floats();
  const int64_t rows = group_->key_rows().place[kv] * p_.source_length * p_.row;
  for (const auto& [matrix, of_keys] :
       {std::pair(kMatrixK, scratch + dk_), {kMatrixV, scratch + dv_}}) {
    p_.table.place_keys({.of_keys = of_keys,
                         .key_position = p_.pairs.key_position(sample),
                         .rows = group_->rows(matrix) + rows,
                         .panels = panels,
                         .num_keys = num_keys,
                         .num_tokens = p_.source_length,
                         .head_dim = p_.head_dim,
                         .panel_stride = group_->key_stride(place)});
    panels += p_.kv_of(sample) * p_.panel_floats();
  }
}

// Panels of the keys; also their rows and panels of the values, in the scratch.
const float* PairBackward::find_keys(int64_t kv, float* scratch) const {
  const int64_t sample = p_.sample_of[kv];
  const CpuPairs::Keys& keys = p_.pairs.keys[sample];
  if (!p_.problem.keys_given()) {
    p_.table.prepare_keys({.k = p_.saved.k(kv),
                           .v = p_.saved.v(kv),
                           .k_rows = scratch + k_rows_,
                           .v_panels = scratch + v_panels_,
                           .num_keys = keys.count,
                           .head_dim = p_.head_dim});
    return p_.saved.k(kv);
  }
  const auto pack = [&](const GivenRows& given, float* panels) {
    const float* from = given.of(sample, p_.kv.head_index[kv]);
    pack_token_panels(p_.table, {.x = keys.rows.empty() ? from + keys.first * given.stride() : from,
                                 .rows = p_.pairs.key_rows(sample),
                                 .panel = panels,
                                 .row_stride = given.stride(),
                                 .tokens = keys.count,
                                 .width = p_.head_dim});
  };
  pack(p_.k, scratch + given_k_);
  pack(p_.v, scratch + v_panels_);
  p_.table.panels_to_rows({.panels = scratch + given_k_,
                           .rows = scratch + k_rows_,
                           .num_tokens = keys.count,
                           .head_dim = p_.head_dim,
                           .panel_stride = p_.panel_floats()});
  return scratch + given_k_;
}

void PairBackward::run_pair(int64_t pair, int64_t sample, const float* k, float* scratch) {
  const int64_t place = sample - group_->first(), head = p_.list.head_index[pair];
  const int64_t num_keys = p_.pairs.keys[sample].count;
  float* u = scratch + u_;
  p_.table.project_panels({.tokens = group_->grad_panels(place),
                           .weights = output_.at(head, 0),
                           .bias = nullptr,
                           .out = u,
                           .num_tokens = p_.length,
                           .width = p_.width,
                           .head_dim = p_.head_dim,
                           .scale = 1.0f});
  const int64_t stride = group_->query_stride(place);
  float* dq =
      group_->query_gradients(place) + (pair - p_.list.row_offset[sample]) * p_.panel_floats();
  const int64_t rows = group_->query_rows().place[pair] * p_.length * p_.row;
  const kernels::ScoreParams scores = p_.pairs.scores(sample, head);
  float* d_scores = bias_sum_ == nullptr ? nullptr : scratch + d_scores_;
  p_.table.attend_backward(
      {.q = p_.saved.q(pair),
       .k = k,
       .k_rows = scratch + k_rows_,
       .v_panels = scratch + v_panels_,
       .context = p_.saved.context(pair),
       .softmax = p_.saved.softmax(pair),
       .u = u,
       .dq = dq,
       .context_rows = group_->rows(kMatrixO) + rows,
       .dk = scratch + dk_,
       .dv = scratch + dv_,
       .d_scores = d_scores,
       .gate_gradient = of_pairs_.mutable_data_ptr<float>() + sample * p_.heads + head,
       .scratch = scratch + attend_,
       .scores = scores,
       .num_tokens = p_.length,
       .num_keys = num_keys,
       .head_dim = p_.head_dim,
       .dq_stride = stride,
       .gate = p_.list.scale[pair],
       .scale = static_cast<float>(p_.problem.scale),
       .of_scores = p_.of_scores});
  if (!p_.of_scores) return;
  if (bias_sum_ != nullptr) {
    bias_sum_->add({.d_scores = d_scores,
                    .key_position = scores.key_position,
                    .out = nullptr,
                    .scratch = scratch + turned_,
                    .query_stride = 0,
                    .key_stride = 0,
                    .num_tokens = p_.length,
                    .num_keys = num_keys},
                   pair, sample, head, p_.table);
  }
  if (!p_.problem.q_transform.empty()) {
    p_.table.transform_backward(transform(p_.q_norm, q_norm_sums_, pair, p_.saved.projected_q(pair),
                                          group_->angles(place), dq, stride, p_.length));
  }
  p_.table.panels_to_rows({.panels = dq,
                           .rows = group_->rows(kMatrixQ) + rows,
                           .num_tokens = p_.length,
                           .head_dim = p_.head_dim,
                           .panel_stride = stride});
}

kernels::TransformBackwardParams PairBackward::transform(const at::Tensor& norm,
                                                         const at::Tensor& norm_sums, int64_t row,
                                                         const float* projected,
                                                         const float* angles, float* panels,
                                                         int64_t stride, int64_t count) const {
  const bool turns = p_.rotary_dim > 0, normed = norm.defined();
  return {.panels = panels,
          .projected = normed ? projected : nullptr,
          .norm_weight = normed ? norm.const_data_ptr<float>() : nullptr,
          .cosines = turns ? angles : nullptr,
          .sines = turns ? angles + group_->angle_floats() : nullptr,
          .norm_gradient =
              normed ? norm_sums.mutable_data_ptr<float>() + row * norm_sums.size(1) : nullptr,
          .num_tokens = count,
          .head_dim = p_.head_dim,
          .rotary_dim = p_.rotary_dim,
          .panel_stride = stride,
          .norm_eps = static_cast<float>(p_.problem.q_transform.norm_eps)};
}

// Of the rows of dk, through panels.
void PairBackward::transform_keys(int64_t kv, float* scratch) const {
  const int64_t sample = p_.sample_of[kv];
  const kernels::TurnPanelsParams turn{.panels = scratch + dk_panels_,
                                       .rows = scratch + dk_,
                                       .num_tokens = p_.pairs.keys[sample].count,
                                       .head_dim = p_.head_dim,
                                       .panel_stride = p_.panel_floats()};
  p_.table.rows_to_panels(turn);
  p_.table.transform_backward(transform(p_.k_norm, k_norm_sums_, kv, p_.saved.projected_k(kv),
                                        group_->key_angles(sample - group_->first()), turn.panels,
                                        turn.panel_stride, turn.num_tokens));
  p_.table.panels_to_rows(turn);
}

void PairBackward::write_given(int64_t kv, const float* scratch) {
  if (!of_k_.defined()) return;
  const int64_t sample = p_.sample_of[kv];
  const int32_t* position = p_.pairs.key_position(sample);
  for (const auto& [of, from] : {std::pair(&of_k_, scratch + dk_), {&of_v_, scratch + dv_}}) {
    float* to = of->mutable_data_ptr<float>() +
                (sample * p_.kv_heads + p_.kv.head_index[kv]) * p_.source_length * p_.head_dim;
    for (int64_t key = 0; key < p_.pairs.keys[sample].count; ++key) {
      std::copy_n(from + key * p_.row, p_.head_dim, to + position[key] * p_.head_dim);
    }
  }
}

void PairBackward::put(DifferentiableTensors& gradients) const {
  const auto norm_gradient = [this](const at::Tensor& sums) {
    return sums.defined() ? sums.view({-1, p_.head_dim, p_.table.vector_length})
                                .sum({0, 2}, false, at::kDouble)
                          : at::Tensor();
  };
  gradients[kK] = of_k_;
  gradients[kV] = of_v_;
  gradients[kQNormWeight] = norm_gradient(q_norm_sums_);
  gradients[kKNormWeight] = norm_gradient(k_norm_sums_);
  if (bias_sum_ != nullptr) gradients[kAttnBias] = bias_sum_->sum();
}

}  // namespace headkit
