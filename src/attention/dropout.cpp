#include "attention/dropout.h"

#include <ATen/ATen.h>

#include <cstdint>

namespace headkit {
namespace {

at::Tensor shifted_right(const at::Tensor& bits, int64_t by) {
  return bits.bitwise_right_shift(by).bitwise_and_((int64_t{1} << (64 - by)) - 1);
}

// The output function of splitmix64 (Steele, Lea, Flood 2014) in wrapping int64 arithmetic.
at::Tensor scramble(at::Tensor bits) {
  bits = (bits ^ shifted_right(bits, 30)) * static_cast<int64_t>(0xbf58476d1ce4e5b9ULL);
  bits = (bits ^ shifted_right(bits, 27)) * static_cast<int64_t>(0x94d049bb133111ebULL);
  return bits ^ shifted_right(bits, 31);
}

}  // namespace

at::Tensor dropout_factor(const AttentionProblem& problem, const at::Tensor& samples,
                          const at::Tensor& heads, const KeyRange& keys, at::ScalarType dtype) {
  const int64_t length = problem.x.size(1);
  const at::Tensor query = at::arange(length, samples.options());
  const at::Tensor key = at::arange(keys.first, keys.first + keys.count, samples.options());
  const at::Tensor pair = samples.view({-1, 1, 1, 1}) * problem.heads + heads.view({-1, 1, 1});
  const at::Tensor place = (pair * length + query.view({-1, 1})) * problem.num_keys + key;
  // Two rounds: neighbouring seeds must not give shifted copies of one mask.
  const at::Tensor bits =
      scramble(scramble(at::full({}, problem.dropout_seed, samples.options())) + scramble(place));
  const auto threshold = static_cast<int64_t>(problem.dropout_p * 0x1p53);
  return shifted_right(bits, 11).ge(threshold).to(dtype).div_(1.0 - problem.dropout_p);
}

}  // namespace headkit
