#include "headkit/feed_forward/gated_feed_forward.h"

#include <ATen/ATen.h>

#include <utility>

#include "feed_forward/feed_forward_call.h"
#include "operators/operator_signature.h"

namespace headkit {

FeedForwardInput& FeedForwardInput::activation(std::string value) {
  activation_ = std::move(value);
  return *this;
}

FeedForwardInput& FeedForwardInput::block_size(int64_t value) {
  block_size_ = value;
  return *this;
}

FeedForwardInput& FeedForwardInput::gate(at::Tensor value) {
  gate_ = std::move(value);
  return *this;
}

FeedForwardInput& FeedForwardInput::prefix(at::Tensor value) {
  prefix_ = std::move(value);
  return *this;
}

FeedForwardInput& FeedForwardInput::skip(bool value) {
  skip_ = value;
  return *this;
}

FeedForwardInput& FeedForwardInput::dropped_output(at::Tensor value) {
  dropped_output_ = std::move(value);
  return *this;
}

at::Tensor gated_feed_forward(const at::Tensor& x, const FeedForwardWeights& weights,
                              const FeedForwardInput& input) {
  const FeedForwardCall call = make_call(x, weights, input);
  return translated_back([&] { return dispatch_feed_forward(call); });
}

BackendChoice feed_forward_backend(const at::Tensor& x, const FeedForwardWeights& weights,
                                   const FeedForwardInput& input) {
  return choose_backend(make_problem(make_call(x, weights, input)));
}

}  // namespace headkit
