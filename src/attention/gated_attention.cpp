#include "headkit/attention/gated_attention.h"

#include <ATen/ATen.h>

#include <stdexcept>
#include <utility>

#include "attention/attention_call.h"

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

at::Tensor gated_attention(const at::Tensor& x, const AttentionWeights& weights, int64_t num_heads,
                           const AttentionInput& input) {
  try {
    return dispatch_attention(make_call(x, weights, num_heads, input));
  } catch (const c10::ValueError& error) {
    throw std::invalid_argument(error.what_without_backtrace());
  }
}

BackendChoice attention_backend(const at::Tensor& x, const AttentionWeights& weights,
                                int64_t num_heads, const AttentionInput& input) {
  return choose_backend(make_problem(make_call(x, weights, num_heads, input)));
}

}  // namespace headkit
