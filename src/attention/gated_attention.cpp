#include "headkit/attention/gated_attention.h"

#include <ATen/ATen.h>

#include <utility>

#include "attention/attention_call.h"
#include "attention/launch.h"
#include "operators/backend.h"
#include "operators/operator_signature.h"

namespace headkit {

AttentionInput& AttentionInput::gate(at::Tensor value) {
  gate_ = std::move(value);
  return *this;
}

AttentionInput& AttentionInput::skip(bool value) {
  skip_ = value;
  return *this;
}

AttentionInput& AttentionInput::key_padding_mask(at::Tensor value) {
  key_padding_mask_ = std::move(value);
  return *this;
}

AttentionInput& AttentionInput::is_causal(bool value) {
  is_causal_ = value;
  return *this;
}

AttentionInput& AttentionInput::attn_bias(at::Tensor value) {
  attn_bias_ = std::move(value);
  return *this;
}

AttentionInput& AttentionInput::dropped_output(at::Tensor value) {
  dropped_output_ = std::move(value);
  return *this;
}

AttentionInput& AttentionInput::scale(double value) {
  scale_ = value;
  return *this;
}

AttentionInput& AttentionInput::dropout(double probability, int64_t seed) {
  dropout_p_ = probability;
  dropout_seed_ = seed;
  return *this;
}

AttentionInput& AttentionInput::kv(at::Tensor value) {
  kv_ = std::move(value);
  return *this;
}

AttentionInput& AttentionInput::num_kv_heads(int64_t value) {
  num_kv_heads_ = value;
  return *this;
}

AttentionInput& AttentionInput::kv_head(std::vector<int64_t> value) {
  kv_head_ = std::move(value);
  return *this;
}

AttentionInput& AttentionInput::rotary(at::Tensor cosines, at::Tensor sines) {
  rotary_cos_ = std::move(cosines);
  rotary_sin_ = std::move(sines);
  return *this;
}

AttentionInput& AttentionInput::q_norm(at::Tensor weight) {
  q_norm_weight_ = std::move(weight);
  return *this;
}

AttentionInput& AttentionInput::k_norm(at::Tensor weight) {
  k_norm_weight_ = std::move(weight);
  return *this;
}

AttentionInput& AttentionInput::norm_eps(double value) {
  norm_eps_ = value;
  return *this;
}

AttentionInput& AttentionInput::window(int64_t value) {
  window_ = value;
  return *this;
}

AttentionInput& AttentionInput::keys_values(at::Tensor k, at::Tensor v) {
  keys_ = std::move(k);
  values_ = std::move(v);
  return *this;
}

AttentionInput& AttentionInput::query_offset(int64_t value) {
  query_offset_ = value;
  return *this;
}

at::Tensor gated_attention(const at::Tensor& x, const AttentionWeights& weights, int64_t num_heads,
                           const AttentionInput& input) {
  const AttentionCall call = make_call(x, weights, num_heads, input);
  return translated_back([&] { return dispatch_attention(call); });
}

BackendChoice choose_backend(const AttentionProblem& problem) {
  BackendChoice choice = choose_backend("gated_attention", attention_cpu_refusal(problem));
  if (choice.name == "cpu" && problem.x.scalar_type() != at::kFloat) {
    choice.reason += runs_in_bf16(problem) ? ", in bfloat16" : ", in float32";
  }
  return choice;
}

BackendChoice attention_backend(const at::Tensor& x, const AttentionWeights& weights,
                                int64_t num_heads, const AttentionInput& input) {
  return choose_backend(make_problem(make_call(x, weights, num_heads, input)));
}

}  // namespace headkit
